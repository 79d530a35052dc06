"""Tables as text in three forms."""

from experiments.plots import text_tables as text_tables_module
from experiments.plots.text_tables import escape


def test_escape():
    assert escape("a|b") == "a|b"
    assert escape("100% & x_1 #2 {y} ~^\\") == (
        r"100\% \& x\_1 \#2 \{y\} \textasciitilde{}\textasciicircum{}\textbackslash{}"
    )
    assert text_tables_module.markdown(["a|b"], []).startswith("| a\\|b |")
