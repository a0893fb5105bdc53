"""Machine files: all that ship are sound, and every fault in one has its own line."""

from fractions import Fraction
from pathlib import Path

import pytest

from moesim import hardware_profiles
from moesim.hardware_profiles import HardwareProfile, ProfileError, check, load, names
from moesim.hardware_profiles.files import parse_tree, validated

FOLDER = Path(hardware_profiles.__file__).parent
MACHINES = [
    "a100-40gb",
    "a100-80gb",
    "a6000",
    "h100-sxm",
    "h100-sxm-measured",
    "h100-sxm-x2",
    "h200-sxm",
    "h200-sxm-measured",
    "l40s",
    "rtx3090",
    "rtx3090x6",
    "rtx4060-laptop",
    "rtx4090",
    "rtx5090",
]


def written(tmp_path: Path, old: str, new: str, name: str = "rtx4090") -> Path:
    """Return a copy of a shipped file in which `old` is `new`."""
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / f"{name}.yaml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def fault(path: Path) -> str:
    """Return what `check` says about a faulty file."""
    with pytest.raises(ProfileError) as error:
        check(path)
    return str(error.value)


def test_the_machines_asked_for_ship() -> None:
    """Every machine of the papers and of the issue has its file."""
    assert names() == MACHINES


@pytest.mark.parametrize("name", names())
def test_a_shipped_machine_has_evidence_on_every_figure(name: str) -> None:
    """Each figure says where it is from; an estimate says how wrong it may be."""
    machine = load(name)
    figures = dict(machine.figures())
    assert len(figures) >= 20
    assert [key for key, figure in figures.items() if not figure.source] == []
    unbounded = [
        key
        for key, figure in figures.items()
        if figure.evidence == "estimated" and figure.band_ppm == 0
    ]
    assert unbounded == []


@pytest.mark.parametrize("name", names())
def test_a_shipped_machine_uses_all_its_sources(name: str) -> None:
    """No evidence is listed that nothing rests on."""
    machine = load(name)
    used = {figure.source for _, figure in machine.figures()}
    unused = [key for key, source in machine.sources.items() if source.source not in used]
    assert unused == []


@pytest.mark.parametrize("name", names())
def test_a_shipped_machine_is_plausible(name: str) -> None:
    """VRAM is faster than DRAM, DRAM than PCIe lets through, and pinned copies than pageable.

    RAM is larger than VRAM but on one that was measured: a rented part of a host.
    """
    machine = load(name)
    link, host = machine.link, machine.host
    pinned = link.h2d.bandwidth.value[-1].bytes_per_s
    assert machine.vram_usable_bytes < machine.vram_bytes
    assert machine.vram_bytes < machine.ram_bytes or machine.fingerprint is not None
    assert pinned < link.pcie.value.bytes_per_s
    assert pinned / link.pcie.value.bytes_per_s > 0.7
    assert link.pageable.bandwidth.value[-1].bytes_per_s < pinned
    assert host.expert_bandwidth.value <= host.dram_bandwidth.value
    assert host.dram_bandwidth.value < machine.gpu.memory_bandwidth.value


def test_the_h100_carries_the_figures_of_the_prototype() -> None:
    """The measured figures of the design are those of the file."""
    machine = load("h100-sxm")
    assert machine.host.expert_bandwidth_while_copying.value == 79_500_000_000
    assert machine.host.expert_bandwidth.value == 105_000_000_000
    assert machine.link.pageable.bandwidth.value[0].bytes_per_s == 8_800_000_000
    assert machine.link.first_copy.extra.value == 583_000 - 373_000
    assert machine.gpu.slow_down_while_copying.value == 55_000


def test_six_3090_are_joined_in_pairs() -> None:
    """FineMoE's machine has three NVLink pairs."""
    machine = load("rtx3090x6")
    assert machine.gpus == 6
    assert machine.link.peer is not None
    assert machine.link.peer.pairs == ((0, 1), (2, 3), (4, 5))


def test_an_unknown_machine_lists_those_that_exist_the_closest_first() -> None:
    """The first name offered is the one that was probably meant."""
    with pytest.raises(ProfileError) as error:
        load("rtx409")
    message = str(error.value)
    assert "no hardware profile 'rtx409'; there are ['rtx4090'" in message
    assert [name for name in names() if name not in message] == []


def test_a_missing_file_is_named() -> None:
    """A path that leads nowhere is no name of a machine."""
    with pytest.raises(ProfileError, match=r"nowhere/mine\.yaml: no such file"):
        load("nowhere/mine.yaml")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "vram: [24GiB, datasheet]",
            "vram: [24, datasheet]",
            "gpu.vram: '24' has no unit; write a size such as 24GiB",
        ),
        (
            "vram: [24GiB, datasheet]",
            "vram: [24gib, datasheet]",
            "gpu.vram: unknown unit 'gib' in '24gib'",
        ),
        (
            "vram: [24GiB, datasheet]",
            "vram: [0GiB, datasheet]",
            "gpu.vram: input should be greater than 0, got '0GiB'",
        ),
        (
            "vram: [24GiB, datasheet]",
            "vram: 24GiB",
            "gpu.vram: expected [value, name of a source], got '24GiB'; a figure needs evidence",
        ),
        (
            "vram: [24GiB, datasheet]",
            "vram: [24GiB, datashet]",
            "gpu.vram: no source 'datashet'; there are ['datasheet', 'guess'",
        ),
        (
            "vram: [24GiB, datasheet]",
            "vram: {value: 24GiB, evidence: estimated, source: a guess}",
            "gpu.vram: an estimate needs a band",
        ),
        (
            "vram: [24GiB, datasheet]",
            "vram: {value: 24GiB, evidence: measured, source: here, band: 1%}",
            "gpu.vram: evidence 'measured' and the key 'measured' go together",
        ),
        (
            "vram: [24GiB, datasheet]",
            "vram: {value: 24GiB, evidence: rumour, source: somebody}",
            "gpu.vram.evidence: input should be 'measured', 'datasheet' or 'estimated', got",
        ),
        (
            "  vram_usable:",
            "  vram_gib: 24\n  vram_usable:",
            "gpu.vram_gib: unknown key; did you mean 'vram'? allowed here: name, vram,",
        ),
        ("  bf16: [165.2 TFLOP/s, datasheet]\n", "", "gpu.bf16: missing; this key is needed"),
        ("cores: 16", "cores: many", "host.cores: input should be a valid integer"),
        ("cores: 16", "cores: 0", "host.cores: input should be greater than or equal to 1"),
        ("vram_usable: [93%", "vram_usable: [0%", "gpu.vram_usable: expected more than 0%"),
        ("vram_usable: [93%", "vram_usable: [930%", "gpu.vram_usable: expected at most 100%"),
        (
            "bandwidth: [25.0 GB/s, usual-link]",
            "bandwidth: [40 GB/s, usual-link]",
            "link.h2d.bandwidth: 40 GB/s is more than PCIe 4.0 x16 carries (31.5 GB/s)",
        ),
        (
            "bandwidth: [25.0 GB/s, usual-link]",
            "bandwidth: [{1MiB: 10 GB/s, 64KiB: 5 GB/s}, usual-link]",
            "link.h2d.bandwidth: sizes must grow; 65536 bytes comes after 1048576",
        ),
        (
            "bandwidth: [25.0 GB/s, usual-link]",
            "bandwidth: [{64KiB: 1 GB/s, 128KiB: 25 GB/s}, usual-link]",
            "link.h2d.bandwidth: 131072 bytes at 25 GB/s would arrive before 65536 bytes",
        ),
        ("pcie: [4.0 x16", "pcie: [4.0 x15", "link.pcie: expected generation and width such as"),
        (
            "expert_bandwidth_while_copying: [45 GB/s",
            "expert_bandwidth_while_copying: [450 GB/s",
            "host.expert_bandwidth_while_copying: expected at most host.expert_bandwidth",
        ),
        ("schema: 1", "schema: 2", "schema: this moesim reads schema: 1, got '2'"),
        ("name: rtx4090", "name: rtx4091", "name: expected 'rtx4090' as the file is called"),
        ("    band: 8%", "    band: 8 GB", "sources.usual-link.band: unknown unit 'GB'"),
        ("    band: 8%", "    band: 8%\n    band: 9%", "line 16: key 'band' is given twice"),
        ("sources:", "sources: [", "line 7: not valid YAML"),
    ],
)
def test_a_planted_fault_is_one_line_with_file_and_key(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    """The line names the file, the key, the value and what would do."""
    message = fault(written(tmp_path, old, new))
    assert message.startswith(f"rtx4090.yaml: {expected}")
    assert "\n" not in message


def test_a_misspelt_section_is_missing_and_unknown(tmp_path: Path) -> None:
    """Both lines together show what happened."""
    lines = fault(written(tmp_path, "\nhost:\n", "\nhots:\n")).splitlines()
    assert lines == [
        "rtx4090.yaml: host: missing; this key is needed",
        (
            "rtx4090.yaml: hots: unknown key; did you mean 'host'? allowed here: "
            "schema, name, title, sources, gpus, gpu, link, host, nvme, fingerprint"
        ),
    ]


def test_five_planted_faults_give_five_lines(tmp_path: Path) -> None:
    """Nobody has to fix a file fault by fault."""
    path = written(tmp_path, "vram: [24GiB", "vram: [24")
    text = path.read_text(encoding="utf-8")
    for old, new in [
        ("cores: 16", "cores: sixteen"),
        ("fp8: [330.3 TFLOP/s", "fp8: [330.3 TFLOPS"),
        ("after: [100ms, guess]", "after: [100ms, gues]"),
        ("  ram: [64GiB, host]\n", "  rom: [64GiB, host]\n"),
    ]:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")
    lines = fault(path).splitlines()
    keys = [line.split(": ")[1] for line in lines]
    assert keys == [
        "gpu.vram",
        "gpu.fp8",
        "link.first_copy.after",
        "host.cores",
        "host.ram",
        "host.rom",
    ]
    assert [line.split(": ")[0] for line in lines] == ["rtx4090.yaml"] * 6


def test_a_fault_in_a_source_is_reported_once(tmp_path: Path) -> None:
    """Not again at every figure that names the source."""
    message = fault(written(tmp_path, "    band: 50%\n", ""))
    assert "rtx4090.yaml: sources.guess: an estimate needs a band" in message
    assert "\n" not in message


def test_scalars_mean_what_they_say(tmp_path: Path) -> None:
    """YAML's own guesses (010 is 8, 1:30 is 90, on is true) have no say."""
    path = written(tmp_path, "cores: 16", "cores: 010")
    assert check(path).host.cores == 10
    path = written(tmp_path, "cpu: AMD Ryzen 9 7950X, two channels of DDR5-6000", "cpu: on")
    assert check(path).host.cpu == "on"
    path = written(tmp_path, "vram: [24GiB", "vram: [24e0 GiB")
    assert check(path).vram_bytes == 24 * 2**30


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    """A tag that would build a Python object is refused."""
    message = fault(written(tmp_path, "cores: 16", "cores: !!python/name:os.system"))
    assert "rtx4090.yaml: line 55: not valid YAML: could not determine a constructor" in message


def test_what_is_no_mapping_or_no_text_is_refused(tmp_path: Path) -> None:
    """A list, an empty file and binary data are no profiles."""
    path = tmp_path / "mine.yaml"
    for content, expected in [
        (b"- 1\n", "expected keys and values"),
        (b"", "expected keys and values"),
        (b"\xff\xfe\x00", "cannot be read as UTF-8 text"),
    ]:
        path.write_bytes(content)
        assert expected in fault(path)


def test_a_figure_may_be_written_in_full(tmp_path: Path) -> None:
    """The full form carries the measurement with it."""
    path = written(
        tmp_path,
        "vram: [24GiB, datasheet]",
        "vram: {value: 24564MiB, evidence: measured, source: nvidia-smi, measured: "
        "{command: nvidia-smi -q, date: 2026-01-01, driver: '580', samples: 1, spread: 0.1%}}",
    )
    figure = check(path).gpu.vram
    assert figure.value == 24_564 * 2**20
    assert figure.evidence == "measured"
    assert figure.band_ppm == 1_000


def test_bandwidth_may_depend_on_size(tmp_path: Path) -> None:
    """Times at the listed sizes are exact, and joined by straight lines."""
    path = written(
        tmp_path,
        "bandwidth: [25.0 GB/s, usual-link]",
        "bandwidth: [{100kB: 1 GB/s, 1MB: 5 GB/s, 100MB: 25 GB/s}, usual-link]",
    )
    route = check(path).link.h2d
    latency_ns = route.latency.value
    times = {
        50_000: 50_000,
        100_000: 100_000,
        550_000: 150_000,
        1_000_000: 200_000,
        100_000_000: 4_000_000,
        200_000_000: 8_000_000,
    }
    assert times == {size: route.time_ns(Fraction(size)) - latency_ns for size in times}


def test_one_profile_is_equal_to_itself_and_frozen() -> None:
    """A profile can be a key, and nobody changes it under a run."""
    machine = load("rtx4090")
    assert machine == load("rtx4090")
    with pytest.raises(ValueError, match="frozen"):
        machine.gpus = 2


def test_a_tree_from_elsewhere_is_held_to_the_same_rules() -> None:
    """What is built in Python passes the same gate as a file."""
    tree = parse_tree((FOLDER / "rtx4090.yaml").read_text(encoding="utf-8"))
    assert load("rtx4090") == validated(tree, HardwareProfile, "tree")
    del tree["gpu"]
    with pytest.raises(ProfileError, match="tree: gpu: missing"):
        validated(tree, HardwareProfile, "tree")
