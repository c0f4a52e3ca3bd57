"""Write wheels, sources and an install script for a machine without a network.

    python scripts/bundle.py --output bundle
    python scripts/bundle.py --output bundle --python-version 3.12 --platform aarch64
    python scripts/bundle.py --output bundle --present freeze.txt

There ``sh bundle/install.sh`` installs the package and what it needs beside the PyTorch that the
machine has; ``freeze.txt``, what ``pip freeze`` writes there, names what else need not be carried.
Versions are those of ``constraints.txt``. What nothing here uses is left out of the wheels:
meshes and textures of dm_control's mazes, arms and dog, MuJoCo's studio, all of labmaze but its
name.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from email.parser import Parser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PACKAGE = "core-agent"
FROM_THE_TARGET = "torch"
"""What the machine has: its build of PyTorch depends on its GPU's driver."""
STAND_IN = "labmaze"
GLIBC = range(39, 16, -1)
MEBIBYTE = 1 << 20

LEFT_OUT: dict[str, Callable[[str], bool]] = {
    "dm-control": lambda name: (
        name.startswith(
            (
                "dm_control/blender/",
                "dm_control/entities/",
                "dm_control/locomotion/",
                "dm_control/manipulation/",
                "dm_control/mujoco/testing/assets/",
                "dm_control/suite/dog_assets/",
            )
        )
        and not name.endswith(".py")
    ),
    "mujoco": lambda name: name.startswith("mujoco/experimental/"),
}
"""Whether a file of a wheel stays behind: data alone, so that imports find what they found."""

INSTALL = """\
#!/bin/sh
# Installs {package} {version} and what it needs from this folder, without a network.
#   sh install.sh           into the Python named by PYTHON (default: python3), which has PyTorch
#   sh install.sh FOLDER    into FOLDER, to be named in PYTHONPATH; that Python stays as it is
set -eu
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
python=${{PYTHON:-python3}}
"$python" - << 'END'
import sys
if sys.version_info[:2] != ({python}):
    raise SystemExit(
        "this bundle is for Python {python_version}, got %d.%d: set PYTHON, or make another bundle"
        % sys.version_info[:2]
    )
try:
    import torch
except ImportError as error:
    raise SystemExit("install PyTorch first: it is not in the bundle (%s)" % error)
END
pip="$python -m pip install --no-index --no-input --disable-pip-version-check"
if [ $# -gt 0 ]; then
    $pip --no-deps --upgrade --target "$1" "$here"/wheels/*.whl
else
    PIP_FIND_LINKS="$here/wheels" $pip "{package}=={version}"
fi
"""


def pip(*arguments: str | Path) -> None:
    """Run pip; what it prints goes to the terminal."""
    options = ["--disable-pip-version-check", "--no-input", "-q"]
    subprocess.run([sys.executable, "-m", "pip", *options, *map(str, arguments)], check=True)


def target_environment(python_version: str, machine: str) -> dict[str, str]:
    """What environment markers see on the target."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python_version}.0",
        "python_version": python_version,
        "sys_platform": "linux",
        "extra": "",
    }


def pinned_versions(lines: Iterable[str], environment: dict[str, str]) -> dict[str, str]:
    """Version by name, of lines ``name==version ; marker`` whose marker holds."""
    pins = {}
    for line in lines:
        try:
            requirement = Requirement(line.partition("#")[0].strip())
        except InvalidRequirement:  # a comment, an editable install, a file
            continue
        exact = [part.version for part in requirement.specifier if part.operator == "=="]
        holds = requirement.marker is None or requirement.marker.evaluate(environment)
        if exact and holds:
            pins[canonicalize_name(requirement.name)] = exact[0]
    return pins


def dist_info(archive: zipfile.ZipFile, file_name: str) -> list[str]:
    """A file of a wheel's own metadata, not of what the wheel brings along."""
    ending = f".dist-info/{file_name}"
    return [n for n in archive.namelist() if n.endswith(ending) and n.count("/") == 1]


def needs(wheel: Path, extras: set[str], environment: dict[str, str]) -> Iterator[Requirement]:
    """What a wheel requires on the target, with those extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = dist_info(archive, "METADATA")
        metadata = Parser().parsestr(archive.read(name).decode())
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        if requirement.marker is None or any(
            requirement.marker.evaluate({**environment, "extra": extra}) for extra in {"", *extras}
        ):
            yield requirement


def is_present(requirement: Requirement, present: dict[str, str]) -> bool:
    """Whether the target has a version that will do."""
    version = present.get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def wheel_name(wheel: Path) -> str:
    """Canonical name of the distribution."""
    return parse_wheel_filename(wheel.name)[0]


def download(requirements: Sequence[str], folder: Path, python_version: str, machine: str) -> None:
    """Get wheels for the target; where there is only a source archive, build it."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in GLIBC]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    options = ["--no-deps", "--implementation", "cp", "--python-version", python_version]
    options += [f"--platform={name}" for name in platforms]
    with tempfile.TemporaryDirectory() as temporary:
        pip("download", *options, "-d", temporary, *requirements)
        for path in Path(temporary).iterdir():
            if path.suffix == ".whl":
                shutil.move(path, folder)
            else:
                build(path, folder)


def build(source: Path, folder: Path) -> None:
    """Make a wheel of a source archive.

    :raises SystemExit: if it serves this machine alone
    """
    before = set(folder.iterdir())
    pip("wheel", "--no-deps", "-w", folder, source)
    (wheel,) = set(folder.iterdir()) - before
    if not wheel.name.endswith("-none-any.whl"):
        raise SystemExit(f"{source.name} has no wheel for the target, and needs a compiler there")


def collect(
    folder: Path, pins: dict[str, str], present: dict[str, str], environment: dict[str, str]
) -> None:
    """Get what the wheels in ``folder`` need, what those need in turn, and so on."""
    python_version, machine = environment["python_version"], environment["platform_machine"]
    done = {FROM_THE_TARGET, STAND_IN}
    extras: dict[str, set[str]] = {}
    wheels = sorted(folder.glob("*.whl"))
    while wheels:
        wanted: dict[str, str] = {}
        for wheel in wheels:
            for requirement in needs(wheel, extras.get(wheel_name(wheel), set()), environment):
                name = canonicalize_name(requirement.name)
                extras.setdefault(name, set()).update(requirement.extras)
                if name in done or is_present(requirement, present):
                    continue
                wanted[name] = f"{name}=={pins[name]}" if name in pins else str(requirement)
        done |= wanted.keys()
        known = set(folder.iterdir())
        if wanted:
            download(list(wanted.values()), folder, python_version, machine)
        wheels = sorted(set(folder.iterdir()) - known)


def record_line(name: str, content: bytes) -> tuple[str, str, int]:
    """A file's line in a wheel's RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return name, f"sha256={digest}", len(content)


def write_wheel(path: Path, files: Iterable[tuple[str, bytes]], info: str) -> None:
    """Write ``files`` as a wheel, with a RECORD of their own in the folder ``info``."""
    record = io.StringIO()
    lines = csv.writer(record, lineterminator="\n")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in files:
            archive.writestr(name, content)
            lines.writerow(record_line(name, content))
        lines.writerow((f"{info}/RECORD", "", ""))
        archive.writestr(f"{info}/RECORD", record.getvalue())


def trim(wheel: Path, left_out: Callable[[str], bool]) -> None:
    """Rewrite a wheel without some of its files."""
    original = wheel.with_suffix(".whole")
    wheel.rename(original)
    with zipfile.ZipFile(original) as archive:
        names = [name for name in archive.namelist() if not left_out(name)]
        (record,) = dist_info(archive, "RECORD")
        kept = ((name, archive.read(name)) for name in names if name != record)
        write_wheel(wheel, kept, record.rpartition("/")[0])
    original.unlink()


def write_stand_in(folder: Path, version: str) -> None:
    """An empty distribution that keeps pip content, as dm_control declares one."""
    info = f"{STAND_IN}-{version}.dist-info"
    summary = "Empty stand-in: only dm_control's mazes import it"
    metadata = f"Metadata-Version: 2.1\nName: {STAND_IN}\nVersion: {version}\nSummary: {summary}\n"
    tags = "Wheel-Version: 1.0\nGenerator: bundle\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = [(f"{info}/METADATA", metadata.encode()), (f"{info}/WHEEL", tags.encode())]
    write_wheel(folder / f"{STAND_IN}-{version}-py3-none-any.whl", files, info)


def write_own(output: Path, wheels: Path) -> str:
    """Build this package's wheel and source archive; its version."""
    command = [sys.executable, "-W", "ignore", "-m", "build", "--no-isolation", "-o", str(output)]
    built = subprocess.run([*command, str(ROOT)], capture_output=True, text=True)
    if built.returncode != 0:
        raise SystemExit(f"building {PACKAGE} failed:\n{built.stdout}{built.stderr}")
    (wheel,) = output.glob("*.whl")
    shutil.move(wheel, wheels)
    return str(parse_wheel_filename(wheel.name)[1])


def write_install_script(output: Path, version: str, python_version: str) -> None:
    """What the target runs."""
    script = INSTALL.format(
        package=PACKAGE,
        version=version,
        python=python_version.replace(".", ", "),
        python_version=python_version,
    )
    path = output / "install.sh"
    path.write_text(script)
    path.chmod(0o755)


def print_sizes(output: Path) -> None:
    """The bundle's size, and the largest of what is in it."""
    sizes = {path.name: path.stat().st_size for path in output.rglob("*") if path.is_file()}
    print(f"{output}: {sum(sizes.values()) / MEBIBYTE:.1f} MiB in {len(sizes)} files; the largest:")
    for name in sorted(sizes, key=lambda name: -sizes[name])[:8]:
        print(f"{sizes[name] / MEBIBYTE:8.1f} MiB  {name}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the bundle."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder, written anew")
    parser.add_argument("--python-version", default=here, help="default: %(default)s")
    parser.add_argument("--platform", default=platform.machine(), help="default: %(default)s")
    parser.add_argument("--present", type=Path, help="what `pip freeze` writes on the machine")
    options = parser.parse_args(arguments)
    Version(options.python_version)
    environment = target_environment(options.python_version, options.platform)
    pins = pinned_versions((ROOT / "constraints.txt").read_text().splitlines(), environment)
    frozen = options.present.read_text().splitlines() if options.present else []
    present = pinned_versions(frozen, environment)
    shutil.rmtree(options.output, ignore_errors=True)
    wheels = options.output / "wheels"
    wheels.mkdir(parents=True)
    version = write_own(options.output, wheels)
    collect(wheels, pins, present, environment)
    for wheel in sorted(wheels.glob("*.whl")):
        if (left_out := LEFT_OUT.get(wheel_name(wheel))) is not None:
            trim(wheel, left_out)
    write_stand_in(wheels, pins[STAND_IN])
    write_install_script(options.output, version, options.python_version)
    print_sizes(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
