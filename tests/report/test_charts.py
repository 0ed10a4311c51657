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
    accuracy, length = charts["Accuracy"]["series"], charts["Response length"]["series"]
    assert [item["label"] for item in accuracy] == ["sums", "gsm8k/main"]
    assert [item["label"] for item in length] == ["training, mean", "gsm8k/main"]
    assert accuracy[1]["color"] == length[1]["color"] != length[0]["color"]


def test_length_stands_beside_held_out_accuracy():
    titles = [
        c["title"]
        for c in plan(**{"completion/length_mean": 1, "eval/a/accuracy": 1, "reward/mean": 1})
    ]
    assert titles == ["Reward", "Accuracy", "Response length"]


def test_training_and_held_out_accuracy_share_an_axis_and_never_a_colour():
    metrics = {"eval/b/accuracy": 0.1, "reward/correct": 1.0, "eval/a/accuracy": 0.2}
    series = by_title(plan(**metrics))["Accuracy"]["series"]
    assert [item["label"] for item in series] == ["training", "b", "a"]
    assert series[0]["color"] == 1
    assert len({item["color"] for item in series}) == 3


def test_watched_words_stand_together_and_one_by_one():
    words = ("any", "rethink", "recheck")
    metrics = {f"words/{word}": 0.1 for word in words}
    metrics |= {f"eval/{name}/words_{word}": 0.2 for name in ("a", "b") for word in words}
    charts = by_title(plan(**metrics, **{"eval/a/accuracy": 0.5}))
    assert [i["label"] for i in charts["Watched words"]["series"]] == ["training", "a", "b"]
    assert [i["color"] for i in charts["Watched words"]["series"]] == [1, 2, 3]
    assert metrics_of(charts["Watched words, one by one"]) == ["words/rethink", "words/recheck"]
    for name in ("a", "b"):
        series = charts[f"Watched words in {name}"]["series"]
        assert [item["label"] for item in series] == ["rethink", "recheck"]
        assert series[0]["color"] != series[1]["color"]


def test_tenths_are_a_histogram_for_each_set_in_rising_shades():
    sets = {f"watch/{name}/tenth_{k}": 0.1 for name in ("spark", "noise") for k in range(10)}
    mass = {f"lp_reg/kept_mass/tenth_{k}": 0.1 for k in range(10)}
    charts = by_title(plan(**sets, **mass, **{"lp_reg/kept_mass": 0.7}))
    titles = [f"Probabilities of watched tokens: {name}" for name in ("spark", "noise")]
    assert list(charts) == [*titles, "Lp-Reg: rare tokens", "Lp-Reg: kept mass"]
    for title in (*titles, "Lp-Reg: kept mass"):
        chart = charts[title]
        assert (chart["kind"], chart["shades"]) == ("stack", True)
        assert [item["color"] for item in chart["series"]] == list(range(1, 11))
        assert [item["label"] for item in chart["series"]] == [f"{k / 10:.1f}" for k in range(10)]


def test_phases_stack_in_the_order_of_the_step_and_new_phases_follow():
    names = ("time/sync", "time/update", "time/step", "time/generate")
    chart = by_title(plan(**dict.fromkeys(names, 1.0)))["Seconds per phase"]
    assert chart["kind"] == "stack"
    assert metrics_of(chart) == ["time/generate", "time/update", "time/sync"]


def test_unknown_metrics_get_charts_of_their_own_grouped_by_prefix():
    charts = plan(**{"prm/loss": 1, "staleness": 2, "prm/brier": 3, "reward/format": 1})
    found = [(c["section"], c["group"], c["title"]) for c in charts]
    assert found == [
        ("More", "prm", "Brier"),
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
