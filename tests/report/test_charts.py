"""Which charts a set of metrics becomes."""

from rlvr.report.charts import plan_charts


def plan(**metrics):
    return plan_charts({name: [value] for name, value in metrics.items()})


def by_title(charts):
    return {chart["title"]: chart for chart in charts}


def metrics_of(chart):
    return [series["metric"] for series in chart["series"]]


def test_a_missing_metric_leaves_out_its_chart_alone():
    charts = by_title(plan(**{"reward/mean": 0.5, "policy/entropy": 1.0, "policy/kl_old": None}))
    assert list(charts) == ["Reward", "Entropy"]
    assert charts["Reward"]["series"][0]["band"] is None


def test_the_band_of_the_reward_is_its_standard_deviation_and_no_chart_of_its_own():
    charts = plan(**{"reward/mean": 0.5, "reward/std": 0.4})
    assert [chart["title"] for chart in charts] == ["Reward"]
    assert charts[0]["series"][0]["band"] == "reward/std"


def test_every_evaluation_set_is_a_series_with_one_colour_everywhere():
    charts = by_title(
        plan(
            **{
                "completion/length_mean": 9,
                "eval/sums/accuracy": 0.5,
                "eval/gsm8k/main/accuracy": 0.2,
                "eval/gsm8k/main/length": 30,
            }
        )
    )
    accuracy, length = charts["Held-out accuracy"]["series"], charts["Response length"]["series"]
    assert [item["label"] for item in accuracy] == ["sums", "gsm8k/main"]
    assert [item["label"] for item in length] == ["training, mean", "gsm8k/main"]
    assert accuracy[1]["color"] == length[1]["color"] != length[0]["color"]


def test_length_stands_beside_held_out_accuracy():
    titles = [
        c["title"]
        for c in plan(**{"completion/length_mean": 1, "eval/a/accuracy": 1, "reward/mean": 1})
    ]
    assert titles == ["Reward", "Held-out accuracy", "Response length"]


def test_phases_stack_in_the_order_of_the_step_and_new_phases_follow():
    names = ("time/sync", "time/update", "time/step", "time/generate")
    chart = by_title(plan(**dict.fromkeys(names, 1.0)))["Seconds per phase"]
    assert chart["kind"] == "stack"
    assert metrics_of(chart) == ["time/generate", "time/update", "time/sync"]


def test_unknown_metrics_get_charts_of_their_own_grouped_by_prefix():
    charts = plan(**{"prm/loss": 1, "staleness": 2, "prm/accuracy": 3, "reward/format": 1})
    found = [(c["section"], c["group"], c["title"]) for c in charts]
    assert found == [
        ("More", "prm", "Accuracy"),
        ("More", "prm", "Loss"),
        ("More", "reward", "Format"),
        ("More", "other", "Staleness"),
    ]


def test_no_measured_metric_is_lost_and_none_is_shown_twice(maker):
    logged = maker.metrics(20) | {"curriculum/level": 3}
    columns = {name: [value] for name, value in logged.items() if name != "step"}
    shown = [name for chart in plan_charts(columns) for name in metrics_of(chart)]
    bands = [
        item["band"] for chart in plan_charts(columns) for item in chart["series"] if item["band"]
    ]
    assert sorted(shown + bands) == sorted(set(columns) - {"time/step"})
