"""Profiles: parsed strictly, extended, recognised."""

import re
from pathlib import Path

import pytest

from edgesdk import profiles
from edgesdk.errors import ProfileError

FIRST_SET = {"x86-cpu", "arm-cpu", "raspberry-pi-4", "raspberry-pi-5", "jetson", "jetson-nano", "jetson-orin", "fpga-vitis", "kria-kv260"}


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_the_first_set_is_there_and_valid() -> None:
    assert set(profiles.names()) >= FIRST_SET
    assert all(profiles.find(name).name == name for name in profiles.names())


def test_a_profile_inherits_what_it_does_not_say() -> None:
    orin, jetson = profiles.find("jetson-orin"), profiles.find("jetson")
    assert orin.family == ("jetson",)
    assert orin.runtime == jetson.runtime
    assert orin.recognise.files == jetson.recognise.files
    assert orin.quantization.schemes != jetson.quantization.schemes


def test_boards_below_the_agents_floor_say_why_they_cannot_be_deployed_to() -> None:
    nano = profiles.find("jetson-nano")
    assert not nano.deployable
    assert "Python 3.6" in nano.reason


def test_an_unknown_key_is_named_with_its_path_and_its_likely_meaning(tmp_path: Path) -> None:
    mine = write(tmp_path, 'title = "x"\nextends = "arm-cpu"\n[quantization]\nsheme = []\n')
    with pytest.raises(ProfileError, match=r"mine\.toml: quantization\.sheme: unknown key \(did you mean schemes\?\)"):
        profiles.find(mine)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('title = "x"\n', "providers"),
        ('title = "x"\nextends = "mine"\n', "circle"),
        ('title = "x"\nextends = "nowhere"\n', "mine.toml: extends: there is no profile `nowhere`"),
        ('title = "x"\nextends = "arm-cpu"\n[runtime]\nintra_op_threads = 100000\n', "runtime.intra_op_threads: input should be less than or equal to 1024"),
        ('title = "x"\nextends = "arm-cpu.toml"\n', "there is no profile `arm-cpu.toml`"),
        ("title = ", "not TOML"),
        ('title = "x"\nextends = "arm-cpu"\nname = "y"\n', "file's name"),
        ('title = "x"\nextends = "arm-cpu"\ndeployable = false\n', "reason"),
        ('title = "x"\nextends = "arm-cpu"\n[quantization]\nschemes = ["int7"]\n', "quantization.schemes.0"),
        ('title = "x"\nextends = "arm-cpu"\n[budget]\nmax_latency_ms = -1\n', "budget.max_latency_ms"),
        ('title = "x"\nextends = "arm-cpu"\n[recognise]\nboard = "["\n', "recognise.board: no regular expression"),
        ('title = "x"\n[[providers]]\nnam = "y"\n', r"providers.0.nam: unknown key \(did you mean name\?\)"),
    ],
)
def test_what_a_profile_cannot_say_is_refused_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ProfileError) as refused:
        profiles.find(write(tmp_path, text))
    assert re.search(words, f"{refused.value} {refused.value.hint}")


def test_a_wrong_name_suggests_the_right_one() -> None:
    with pytest.raises(ProfileError, match="jetson-orim") as refused:
        profiles.find("jetson-orim")
    assert "jetson-orin" in refused.value.hint


@pytest.mark.parametrize(
    ("facts", "closest"),
    [
        ({"architecture": "x86_64"}, "x86-cpu"),
        ({"architecture": "aarch64"}, "arm-cpu"),
        ({"architecture": "aarch64", "board": "Raspberry Pi 4 Model B Rev 1.4"}, "raspberry-pi-4"),
        ({"architecture": "aarch64", "board": "Raspberry Pi 5 Model B", "cpu_features": ["asimd", "asimddp"]}, "raspberry-pi-5"),
        ({"architecture": "aarch64", "board": "NVIDIA Jetson Orin Nano", "files": ["/etc/nv_tegra_release"]}, "jetson-orin"),
        ({"architecture": "aarch64", "board": "NVIDIA Jetson Xavier NX", "files": ["/etc/nv_tegra_release"]}, "jetson"),
        ({"architecture": "aarch64", "board": "ZynqMP SMK-K26 KV260", "files": ["/usr/bin/xdputil"]}, "kria-kv260"),
    ],
)
def test_a_device_is_recognised_as_the_closest_profile(facts: dict[str, object], closest: str) -> None:
    assert profiles.recognise(facts)[0].name == closest


def test_nothing_fits_a_device_of_another_kind() -> None:
    assert profiles.recognise({"architecture": "riscv64"}) == []


def test_every_value_of_hardware_cites_its_source() -> None:
    for name in FIRST_SET - {"raspberry-pi-4"}:
        assert "#" in (profiles.folder() / f"{name}.toml").read_text(), name


def test_a_file_whose_name_is_no_name_is_no_profile(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="`MyBoard` is no name"):
        profiles.find(write(tmp_path, 'title = "x"\nextends = "arm-cpu"\n', "MyBoard.toml"))
