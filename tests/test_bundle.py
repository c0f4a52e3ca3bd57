"""The bundle for machines without a network, but for what has to be fetched."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SCRIPT = Path(__file__).parents[1] / "scripts" / "bundle.py"
spec = importlib.util.spec_from_file_location("bundle", SCRIPT)
bundle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bundle)

TARGET = bundle.target_environment("3.12", "aarch64")


def write_wheel(folder: Path, name: str, *needs: str, **files: bytes) -> Path:
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    content = {f"{name}/{key}.bin": value for key, value in files.items()}
    content |= {f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": tags.encode()}
    bundle.write_wheel(path, content.items(), info)
    return path


def test_versions_are_those_whose_marker_holds_on_the_target():
    lines = [
        "# a comment",
        "a==1 ; python_full_version < '3.12'",
        "A==2 ; python_version >= '3.12'",
    ]
    lines += ["b==3 ; platform_machine == 'x86_64'", "c_d==4", "-e somewhere", "e>=5"]
    assert bundle.pinned_versions(lines, TARGET) == {"a": "2", "c-d": "4"}


def test_needs_are_those_of_the_target_and_of_the_extras(tmp_path):
    wheel = write_wheel(
        tmp_path, "a", "b>=2", "c; python_version < '3.12'", "d; extra == 'more'", "e; extra == 'x'"
    )
    assert [str(need) for need in bundle.needs(wheel, set(), TARGET)] == ["b>=2"]
    assert [need.name for need in bundle.needs(wheel, {"more"}, TARGET)] == ["b", "d"]


def test_the_closure_leaves_out_torch_and_what_is_present(tmp_path, monkeypatch):
    index = {"b": ["c", "torch>=2"], "c": ["d>=2", "e>=2"], "d": ["b"], "e": []}
    fetched = []

    def download(requirements, folder, python_version, machine):
        assert (python_version, machine) == ("3.12", "aarch64")
        fetched.extend(requirements)
        for requirement in requirements:
            name = Requirement(requirement).name
            write_wheel(folder, name, *index[name])

    monkeypatch.setattr(bundle, "download", download)
    write_wheel(tmp_path, "a", "b", "labmaze")
    bundle.collect(tmp_path, {"b": "1.0"}, {"d": "2.5", "e": "1.0"}, TARGET)
    assert fetched == ["b==1.0", "c", "e>=2"]  # d is new enough, e is not


def test_trimmed_wheels_and_stand_ins_install(tmp_path):
    wheel = write_wheel(tmp_path, "a", kept=b"1", dropped=b"2" * 1000)
    bundle.trim(wheel, lambda name: name.endswith("dropped.bin"))
    bundle.write_stand_in(tmp_path, "1.0.6")
    wheels = sorted(tmp_path.glob("*.whl"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "-q",
        "--no-index",
    ]
    subprocess.run([*pip, "--no-deps", "--target", tmp_path / "site", *wheels], check=True)
    assert [path.name for path in (tmp_path / "site/a").iterdir()] == ["kept.bin"]
    assert (tmp_path / "site/labmaze-1.0.6.dist-info").exists()


def test_code_is_never_left_out():
    left_out = bundle.LEFT_OUT["dm-control"]
    assert left_out("dm_control/locomotion/walkers/assets/CMU_V2020.xml")
    assert not left_out("dm_control/locomotion/walkers/cmu_humanoid.py")
    assert not left_out("dm_control/suite/cheetah.xml")


def test_the_install_script_asks_for_the_right_python_first(tmp_path):
    bundle.write_install_script(tmp_path, "0.1.0", "3.9")
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [tmp_path / "install.sh"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "this bundle is for Python 3.9, got 3." in done.stderr


def test_a_source_archive_that_needs_a_compiler_is_refused(tmp_path, monkeypatch):
    def pip(*arguments):
        with zipfile.ZipFile(tmp_path / "a-1.0-cp312-cp312-linux_x86_64.whl", "w"):
            pass

    monkeypatch.setattr(bundle, "pip", pip)
    with pytest.raises(SystemExit, match=r"a-1\.0\.tar\.gz has no wheel for the target"):
        bundle.build(Path("a-1.0.tar.gz"), tmp_path)
