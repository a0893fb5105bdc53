"""A drafted profile is valid, an estimate throughout, and never overwrites a file."""

from pathlib import Path

import pytest

from moesim.hardware_profiles import ProfileError, check, load, names, new, write_new


@pytest.mark.parametrize("like", names())
def test_a_draft_of_any_machine_passes_the_check(tmp_path: Path, like: str) -> None:
    """What was given is in the file with a band, what was not is taken over as an estimate."""
    path = write_new("mine", like=like, folder=tmp_path, vram="32GiB", h2d="9 GB/s", cores="17")
    mine, other = check(path), load(like)
    assert mine.vram_bytes == 32 * 2**30
    assert mine.link.h2d.bandwidth.value[0].bytes_per_s == 9_000_000_000
    assert mine.gpu.vram.band_ppm == 100_000
    assert mine.host.cores == 17
    assert other.gpu.memory_bandwidth.value == mine.gpu.memory_bandwidth.value
    figures = dict(mine.figures())
    assert {"estimated"} == {figure.evidence for figure in figures.values()}
    assert min(figure.band_ppm for figure in figures.values()) >= 100_000
    assert f"taken over from {like}" in mine.gpu.memory_bandwidth.source


def test_a_draft_of_a_draft_keeps_both_bands(tmp_path: Path) -> None:
    """Names of sources do not collide when a draft is the start of the next."""
    first = write_new("first", like="rtx4090", folder=tmp_path, vram="32GiB")
    second = write_new("second", like=first, folder=tmp_path, ram="48GiB")
    third = check(write_new("third", like=second, folder=tmp_path, h2d="20 GB/s"))
    assert third.vram_bytes == 32 * 2**30
    assert third.gpu.vram.band_ppm == 250_000
    assert third.link.h2d.bandwidth.band_ppm == 100_000


def test_a_draft_of_a_measured_machine_is_no_measurement(tmp_path: Path) -> None:
    """Figures in the full form, by size, and the fingerprint do not pass as this machine's."""
    text = new("base", like="rtx4090")
    text = text.replace(
        "vram: [24GiB, like-datasheet]",
        "vram: {value: 24GiB, evidence: measured, source: nvidia-smi, measured: "
        "{command: nvidia-smi, date: 2026-01-01, driver: '580', samples: 1, spread: 40%}}",
    ).replace("[25.0 GB/s, like-usual-link]", "[{1MiB: 9 GB/s, 1GiB: 25 GB/s}, like-usual-link]")
    text += "\nfingerprint: {gpu: a, driver: b, cpu: c, pcie: d}\n"
    base = tmp_path / "base.yaml"
    base.write_text(text, encoding="utf-8")
    assert check(base).fingerprint is not None
    mine = check(write_new("mine", like=base, folder=tmp_path))
    assert mine.gpu.vram.evidence == "estimated"
    assert mine.gpu.vram.measured is None
    assert len(mine.link.h2d.bandwidth.value) == 2
    assert mine.fingerprint is None


def test_a_draft_never_replaces_a_file(tmp_path: Path) -> None:
    """The second draft of one name is refused, and the first stays as it was."""
    path = write_new("mine", like="rtx4090", folder=tmp_path)
    before = path.read_bytes()
    with pytest.raises(ProfileError, match="exists already; choose another name"):
        write_new("mine", like="rtx5090", folder=tmp_path)
    assert before == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_the_same_draft_is_the_same_bytes() -> None:
    """Nothing of the moment goes into the text."""
    assert new("mine", like="l40s", vram="1GiB") == new("mine", like="l40s", vram="1GiB")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"vram": "32"}, "mine.yaml: gpu.vram: '32' has no unit"),
        ({"vramm": "32GiB"}, "no option 'vramm'; did you mean 'vram'? there are title, gpus"),
        ({"h2d": "64 GB/s"}, "mine.yaml: link.h2d.bandwidth: 64 GB/s is more than PCIe 4.0 x16"),
        ({"cores": "many"}, "mine.yaml: host.cores: input should be a valid integer"),
        ({"pcie": "9.0 x16"}, "mine.yaml: link.pcie: expected generation and width"),
    ],
)
def test_a_faulty_value_writes_nothing(
    tmp_path: Path, given: dict[str, str], expected: str
) -> None:
    """The error is the one that `check` would give, and no file appears."""
    with pytest.raises(ProfileError) as error:
        write_new("mine", like="rtx4090", folder=tmp_path, **given)
    assert str(error.value).startswith(expected)
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_a_disk_cannot_be_given_one_by_its_bandwidth() -> None:
    """A latency would be missing: the draft has to start from a machine that has one."""
    with pytest.raises(ProfileError, match="nvme: h100-sxm has no nvme; take another --like"):
        new("mine", like="h100-sxm", nvme="7 GB/s")


@pytest.mark.parametrize("name", ["../mine", "Mine", "", "my machine"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    """Names are lower case, without spaces or folders."""
    with pytest.raises(ProfileError, match="name: "):
        write_new(name, like="rtx4090", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The message names the file that could not be written."""
    with pytest.raises(ProfileError, match=r"mine\.yaml: cannot be written"):
        write_new("mine", like="rtx4090", folder=tmp_path / "nowhere")
