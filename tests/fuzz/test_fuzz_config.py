"""Presets and flags: any file and any command line give a configuration or an error that names what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from attempt import attempt
from cli import dump_config, load_config
from grpo_options import GrpoRecipe
from hypothesis import example, given
from hypothesis import strategies as st
from pipeline import Pipeline
from sft import SftRecipe

PRESETS = sorted((Path(__file__).resolve().parents[2] / "recipes" / "presets").glob("*.toml"))
UNICODE = st.text(st.characters(codec="utf-8"), max_size=12)


@dataclass(frozen=True)
class Inner:
    """A section of each type that recipes use."""

    rate: float = 1e-3
    cap: float | None = None
    kind: Literal["a", "b"] = "a"
    on: bool = False
    label: str | None = None


@dataclass(frozen=True)
class Outer:
    """The whole."""

    path: Path = Path("x")
    count: int = 3
    names: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    text: str = ""
    inner: Inner = field(default_factory=Inner)


def load(argv: list[str], cls: type = Outer) -> Any:
    """The configuration, or None where it was refused or --help was asked for."""
    if "--help" in argv or "-h" in argv:
        with pytest.raises(SystemExit) as stop:
            load_config(cls, argv, "A recipe.")
        assert stop.value.code == 0
        return None
    return attempt(lambda: load_config(cls, argv, "A recipe."), limit=4000)[0]  # a message may list all valid options


FLOATS = st.floats(allow_nan=False)
PATHS = UNICODE.map(Path)
CONFIGS = st.builds(
    Outer,
    path=PATHS,
    count=st.integers(-(2**63), 2**63 - 1),
    names=st.lists(UNICODE, max_size=3).map(tuple),
    files=st.lists(PATHS, max_size=3).map(tuple),
    text=UNICODE,
    inner=st.builds(
        Inner,
        rate=FLOATS,
        cap=st.none() | FLOATS,
        kind=st.sampled_from("ab"),
        on=st.booleans(),
        label=st.none() | UNICODE.filter(lambda text: text != "none"),
    ),
)


@given(config=CONFIGS)
@example(config=Outer(path=Path('a"\\\n\x7f\x00\u2028\x85é😀'), names=('"', "'''", "\t", "", "a,b"), text="none"))
@example(config=Outer(inner=Inner(rate=float("inf"), cap=-0.0)))
@example(config=Outer(inner=Inner(rate=5e-324, cap=1.7976931348623157e308)))
def test_whatever_is_dumped_reads_back_equal(config: Outer, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(dump_config(config).encode())
    assert load(["--config", str(tmp_path / "c.toml")]) == config


@given(data=st.binary(max_size=200) | UNICODE.map(str.encode))
@example(data=b"inner = " + b"[" * 5000)
@example(data=b"inner = " + b"{a = " * 5000)
@example(data=b"count = " + b"9" * 5000)
@example(data=b"count = 0x" + b"f" * 5000)
@example(data=b"inner = 0x" + b"f" * 5000)
@example(data=b"inner.rate = 0x" + b"f" * 500)
@example(data=b"names = [0x" + b"f" * 5000 + b"]")
@example(data=b"count = 9223372036854775808")
@example(data=b"inner.rate = nan")
@example(data=b"count = 2020-01-01")
@example(data=b"\xff\xfe")
@example(data=b"a" * 100_000 + b" = 1")
@example(data=b"count = '" + b"a" * 100_000 + b"'")
@example(data=b"path = '\\u0000'")
def test_any_bytes_as_preset_give_a_configuration_or_an_error_that_names_the_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(data)
    load(["--config", str(tmp_path / "c.toml")])


@given(data=st.data())
def test_a_damaged_preset_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    text = data.draw(st.sampled_from(PRESETS)).read_bytes()
    place = data.draw(st.integers(0, len(text)))
    cut = data.draw(st.integers(0, 30))
    chunk = data.draw(
        st.binary(max_size=8) | st.sampled_from([b"-", b'"', b"nan", b"[", b"]\n", b"= 1e400\n", b"\n[x]\n"])
    )
    (tmp_path / "c.toml").write_bytes(text[:place] + chunk + text[place + cut :])
    for cls in (SftRecipe, GrpoRecipe, Pipeline):
        load(["--config", str(tmp_path / "c.toml")], cls)


FLAGS = ["--path", "--count", "--names", "--files", "--text", "--inner", "--inner.rate", "--inner.cap", "--inner.on"]
FLAGS += [
    "--inner.kind",
    "--inner.label",
    "--config",
    "--help",
    "-h",
    "--",
    "-",
    "--=",
    "--count=",
    "none",
    "true",
    "1,,2",
]
FLAGS += [
    "1e400",
    "-0",
    "٣",
    "1_0",
    "inf",
    "nan",
    "9" * 5000,
    "\0",
    "\udcff",
    "/",
    "/dev/null/x",
    "x" * 5000,
    "--" + "z" * 5000,
]


@given(argv=st.lists(st.sampled_from(FLAGS) | st.text(st.characters(exclude_categories=[]), max_size=6), max_size=6))
@example(argv=["--config", "\0"])
@example(argv=["--config", "x" * 5000])
@example(argv=["--config", "/"])
@example(argv=["--inner.rate", "9" * 5000])
@example(argv=["--text", "\udcff"])
@example(argv=["--" + "z" * 100_000, "1"])
def test_any_command_line_gives_a_configuration_or_an_error(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = load(argv)
    if config is not None:
        dump_config(config).encode()


@pytest.mark.parametrize(
    "data", [b"count = " + b"9" * 5000, b"inner = " + b"[" * 5000, b"\xff", b"text = 0x" + b"f" * 5000]
)
def test_what_a_preset_cannot_say_is_refused_by_its_name(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(data)
    with pytest.raises(ValueError, match=r"config file '.*c\.toml'"):
        load_config(Outer, ["--config", str(tmp_path / "c.toml")], None)
