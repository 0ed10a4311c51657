"""The page of the landscape, as a browser shows it."""

import pytest

from rlvr.preference.lattice import single_model_losses
from rlvr.report.lattice import write_lattice


def test_every_loss_stands_in_the_page_and_nothing_is_fetched(tmp_path):
    page = write_lattice(tmp_path / "lattice.html").read_text()
    assert all(f'data-loss="{name}"' in page for name in single_model_losses())
    assert page.count("<line ") == 32
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(ValueError, match="is a folder"):
        write_lattice(tmp_path)


@pytest.mark.browser
def test_nodes_show_their_loss(tmp_path, opened):
    page = opened(write_lattice(tmp_path / "lattice.html"))
    assert "log Pw / Pl" in page.one("#detail").text
    for name, structure in single_model_losses().items():
        node = page.one(f'[data-loss="{name}"]')
        node.click()
        assert f"P\n{structure.formulas['P']}\n" in page.one("#detail").text
        assert node.get_attribute("aria-pressed") == "true"
    page.one('[data-loss="CPO"]').click()
    assert "cCPO, l14" in page.one("#detail").text
    assert "cUNL, sCE" in page.one("#detail").text
    page.press("\ue004", "\ue007")  # Tab to the next node, Enter
    assert page.one("#detail h2").text != "CPO"
    page.one("#reference").click()
    page.one('[data-loss="CPO"]').click()
    assert page.one("#detail h2").text == "DPO"
    assert "l & rw -> w & rl" in page.one("#detail").text
