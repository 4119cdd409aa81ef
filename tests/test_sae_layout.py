"""Names of artifacts, and flags that every stage has."""

import errno
import json
from pathlib import Path

import pytest

from src.errors import UserError
from src.sae.layout import PRESETS, Layout, add_preset, finish, layout_of, parser, preset, read_json


def parse(*words: str) -> Layout:
    return layout_of(parser("src.sae.layout", "Test.").parse_args(list(words)))


def test_every_artifact_bears_the_name_of_the_run() -> None:
    layout = parse("--dataset", "bigbase", "--version", "v3", "--out", "here")
    assert layout == Layout(Path("here"), "bigbase", "v3")
    assert layout.parquet == Path("here/processed/lstm-sae-bigbase-v3.parquet")
    assert layout.metadata == Path("here/metadata/lstm-sae-bigbase-v3.json")
    assert layout.labels == Path("here/label_dist/lstm-sae-bigbase-v3.csv")
    folders = (layout.encoded, layout.model, layout.eval, layout.vis)
    assert [str(folder) for folder in folders] == [f"here/{stage}/lstm-sae-bigbase-v3" for stage in ("encoded", "models", "eval", "vis")]
    assert layout.model_name == "lstm-sae-model-bigbase-v3"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "bigbas", "--version", "v1"], "did you mean 'bigbase'"),
        (["--dataset", "bigbase", "--version", "../v1"], "must be 1 to 64"),
        (["--dataset", "bigbase", "--version", ""], "must be 1 to 64"),
        (["--dataset", "bigbase", "--version", "v1", "--model", "cnn"], "unknown --model 'cnn'; allowed: lstm-sae"),
        (["--dataset", "bigbase"], "--version"),
        (["--dataset", "bigbase", "--version", "v1", "--vers", "v2"], "--vers"),
    ],
)
def test_wrong_flags_end_in_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(*words)
    assert "\n" not in str(caught.value)


def test_the_descriptions_spellings_are_understood() -> None:
    words = parser("src.sae.layout", "Test.")
    words.add_argument("--encoding-config")
    given = words.parse_args(["--model", "lstm-sae", "--dataset", "bigbase", "--version", "v_1", "--encoding_config", "my_file.json"])
    assert (layout_of(given).version, given.encoding_config) == ("v_1", "my_file.json")
    assert words.parse_args(["--dataset=a_b", "--version=v_1", "--encoding_config=my_file"]).encoding_config == "my_file"


def test_a_preset_is_wanted_only_where_there_is_a_choice() -> None:
    assert preset("bigbase", "basic").schema.name == "schema-bigbase-v1.json"
    assert preset("bigbase", "extended").encoding.name == "encoding-bigbase-lstm-sae-v2.json"
    assert preset("unraveled") == preset("unraveled", "network")
    assert preset("ciciot2023") == preset("ciciot2023", "merged39") != preset("ciciot2023", "classic46")
    assert preset("iot23").schema.name == "schema-iot23-v1.json"
    for dataset, name, message in (
        ("bigbase", None, "basic, extended"),
        ("bigbase", "extnded", "did you mean 'extended'"),
        ("unraveled", "basic", "network"),
        ("otrf", "basic", "one configuration"),
    ):
        with pytest.raises(UserError, match=message):
            preset(dataset, name)


def test_the_help_names_every_data_set_and_preset(capsys: pytest.CaptureFixture[str]) -> None:
    words = parser("src.sae.layout", "Test.")
    add_preset(words)
    with pytest.raises(SystemExit):
        words.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert all(dataset in shown and all(name in shown for name in names) for dataset, names in PRESETS.items())


def test_json_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    with pytest.raises(UserError, match="is missing"):
        read_json(path)
    for text, message in (
        ("{", "as JSON"),
        ("[1]", "not list"),
        ('{"b": 1}', "key 'a' is missing; found: b"),
        ('{"a": 1, "columm": 2}', "did you mean 'column'"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_json(path, required=["a"], optional=["column"])
    path.write_text(json.dumps({"a": 1, "z": 2}))
    assert read_json(path, required=["a"]) == {"a": 1, "z": 2}


def test_exit_status_follows_the_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong(words: list[str] | None) -> None:
        raise UserError("no such thing")

    def stopped(words: list[str] | None) -> None:
        raise KeyboardInterrupt

    def full(words: list[str] | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "here/x.npy")

    assert [finish(lambda _: None), finish(lambda _: 1), finish(wrong), finish(stopped), finish(full)] == [0, 1, 2, 130, 1]
    shown = capsys.readouterr().err
    assert "error: no such thing" in shown
    assert shown.splitlines()[-1] == "error: No space left on device: here/x.npy; is the disk full, or gone?"


@pytest.mark.parametrize(("dataset", "name"), [(dataset, name) for dataset, names in PRESETS.items() for name in (names or [None])])
def test_every_configuration_is_there(dataset: str, name: str | None) -> None:
    files = preset(dataset, name)
    assert read_json(files.schema)["core_features"]
    assert read_json(files.encoding)
