import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_asr.errors import InputError
from moe_asr.measure.normalize import NORMALIZERS, Normalizer, normalizer

HASHES = {"none": "e1179cbac605", "basic": "eb2130ecbbef", "english": "132c8524dfe3", "cjk": "d97f2690aefe"}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("none", " Hello,  World ", " Hello,  World "),
        ("basic", " Hello,  World! ", "hello world"),
        ("basic", "Don’t say 'yes' -- dogs' rock 'n' roll", "don't say yes dogs rock n roll"),
        ("basic", "ＡＢＣ ﬁne well-known", "abc fine well known"),
        ("basic", "zero\u200bwidth\ufeff caf\u0065\u0301", "zerowidth café"),
        ("basic", "हिन्दी में।", "हिन्दी में"),
        ("basic", "5 + 3 = $8", "5 + 3 = $8"),
        (
            "english",
            "Mr. Smith can't, won't & doesn't: we're OK!",
            "mister smith can not will not and does not we are okay",
        ),
        ("english", "Um, I'm at 1,000.5 per cent, uhh 7%", "i am at 1000 point 5 percent 7 percent"),
        ("english", "It's Bob's; he'd stay, umbrella, hummer", "it's bob's he'd stay umbrella hummer"),
        ("cjk", "你 好，世界！ Hello  World 吗", "你好世界hello world吗"),
    ],
)
def test_golden_texts(name: str, text: str, expected: str) -> None:
    assert normalizer(name)(text) == expected


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing(text: str) -> None:
    for name in ("basic", "cjk"):
        once = normalizer(name)(text)
        assert normalizer(name)(once) == once
        assert once == " ".join(once.split())


def test_hashes_are_stable_and_follow_the_definition() -> None:
    """A changed hash means a changed definition: then results before and after are not comparable."""
    assert {name: n.hash for name, n in NORMALIZERS.items()} == HASHES
    assert Normalizer("basic", words=(("a", "b"),)).hash != normalizer("basic").hash
    assert normalizer("basic").receipt() == {"name": "basic", "hash": HASHES["basic"]}


def test_an_unknown_name_is_refused_with_the_closest() -> None:
    with pytest.raises(InputError, match=r"'englsh': did you mean english\? .* none, basic, english, cjk"):
        normalizer("englsh")
    with pytest.raises(InputError, match="'zzz': The choices are"):
        normalizer("zzz")
