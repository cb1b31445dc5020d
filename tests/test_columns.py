"""Tables for the terminal."""

from moe_asr.columns import aligned


def test_numbers_stand_to_the_right_and_rows_may_end_early() -> None:
    rows = [
        ["set", "pair", "WER", "95 % interval", "chunk", "time"],
        ["seen", "B - A", "7.16 %", "[-1.38, +0.19]", "full", "0:01:02"],
        ["unseen_long", "-", "10.00 %", "none", "4"],
    ]
    assert aligned(rows) == (
        "set          pair       WER   95 % interval  chunk     time\n"
        "seen         B - A   7.16 %  [-1.38, +0.19]   full  0:01:02\n"
        "unseen_long  -      10.00 %            none      4"
    )
