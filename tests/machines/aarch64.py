"""Python on another processor: `python -m tests.machines.aarch64 -m MODULE ...` runs it on an emulated aarch64.

What it takes is fetched once into .aarch64/ of this checkout: CPython and its libraries for arm64 from the apt sources
of this machine (Debian's, or others that keep arm64 in the same archive), QEMU's user emulation unless it is installed,
and wheels for aarch64 as constraints.txt has them. Nothing is installed, root is not needed, and apt's own files stay
as they are.

The Python inside sees the files of this machine with those of .aarch64/root in front of them. It cannot start other
programs, itself included, and numba compiles slowly there, once: the compiled functions are kept. What BLAS, libm and
NumPy's own exp and log do ends in other bits there: digests.py refuses them.

With --compare the same command runs on the interpreter of this machine as well; the exit status is 0 if both succeed
and print the same.
"""

from __future__ import annotations

import difflib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
HOME = REPOSITORY / ".aarch64"
ROOT = HOME / "root"
WHEELS = HOME / "wheels"

DEBS = ("python3:arm64", "libstdc++6:arm64")
"""What the root folder is made of, with all that these depend on."""

IMPORTED = ("attrs", "cattrs", "llvmlite", "ml_dtypes", "numba", "numpy", "threadpoolctl", "typing_extensions")
"""What `import precision_lab` imports (numba imports scipy too, where there is one)."""

PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")

PASSED_ON = ("NUMBA_", "OPENBLAS_", "NPY_", "QEMU_")
"""How the variables begin that the Python inside sees too."""


class SetupError(Exception):
    """What is missing, in one line."""


def main(arguments: Sequence[str]) -> int:
    compare = arguments[:1] == ["--compare"]
    command = list(arguments[compare:])
    if not command:
        print("usage: python -m tests.machines.aarch64 [--compare] -m MODULE [ARGUMENT ...]", file=sys.stderr)
        return 2
    try:
        emulated = [str(part) for part in set_up()]
    except SetupError as error:
        print(f"no aarch64 here: {error}", file=sys.stderr)
        return 1
    if not compare:
        return subprocess.run([*emulated, *command], env=environment(), cwd=REPOSITORY, check=False).returncode
    here = printed("this machine", [sys.executable, *command], {**os.environ, "PYTHONPATH": str(REPOSITORY)})
    there = None if here is None else printed("aarch64", [*emulated, *command], environment())
    if here is None or there is None:
        return 1
    difference = list(difflib.unified_diff(here, there, platform.machine(), "aarch64", lineterm="", n=0))
    print("\n".join(difference) or f"the same {len(here)} lines on {platform.machine()} and aarch64")
    return int(bool(difference))


def printed(name: str, command: Sequence[str], env: Mapping[str, str]) -> list[str] | None:
    """Return the lines that a command prints, or nothing where it fails; its complaints go where ours go."""
    start = time.perf_counter()
    done = subprocess.run(command, env=env, cwd=REPOSITORY, check=False, stdout=subprocess.PIPE, text=True)
    print(f"{name}: {time.perf_counter() - start:.1f} s, exit status {done.returncode}", file=sys.stderr)
    return None if done.returncode else done.stdout.splitlines()


def environment() -> dict[str, str]:
    """Return the variables of the Python inside."""
    return {
        "NUMBA_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # under QEMU's own choice, with SVE of 512 bits, NumPy's A @ A.T of float32 comes out wrong, up to NaN
        "QEMU_CPU": "cortex-a72",
        **{name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)},
        "HOME": str(HOME),
        "LANG": "C.UTF-8",
        "NUMBA_CACHE_DIR": str(HOME / "numba"),
        "PYTHONHOME": str(ROOT / "usr"),
        "PYTHONNOUSERSITE": "1",
        "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(WHEELS))),
        "PYTHONPYCACHEPREFIX": str(HOME / "pycache"),
    }


def set_up() -> tuple[Path, str, Path, Path]:
    """Return the command that is the Python inside; what it needs is fetched if it is not there."""
    if platform.machine() == "aarch64":
        raise SetupError("this machine is one, there is nothing to emulate; run the command itself")
    python = ROOT / "usr/bin/python3"
    if not python.exists() or qemu() is None:
        make_root()
    emulator = qemu()
    if emulator is None or not python.exists():
        raise SetupError("the packages have no qemu-aarch64 or no python3")
    make_wheels(python.resolve().name.removeprefix("python"))
    return emulator, "-L", ROOT, python


def qemu() -> Path | None:
    """Return QEMU's emulator of aarch64 programs: the one of this machine, or else the one of the root folder."""
    names = ("qemu-aarch64-static", "qemu-aarch64")
    installed = (shutil.which(name, path=path) for path in (None, ROOT / "usr/bin") for name in names)
    return next((Path(path) for path in installed if path), None)


def make_root() -> None:
    """Fetch the Debian packages and unpack them.

    apt-get gets lists, a cache and a record of what is installed (nothing) of its own, and of this machine's settings
    those alone that say where packages are and how they are reached and trusted; its hooks are left out.
    """
    print("fetching CPython for aarch64 (once, 20 to 80 MB)", file=sys.stderr)
    part, apt = HOME / "root.part", HOME / "apt"
    for folder in (part, apt):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in (part, apt / "lists/partial", apt / "archives/partial", apt / "parts"):
        folder.mkdir(parents=True)
    (apt / "status").touch()
    reached = [line for line in output_of("apt-config", "dump").splitlines() if line.startswith("Acquire::")]
    host = output_of("dpkg", "--print-architecture").strip()
    settings = [
        f'APT::Architectures {{ "{host}"; "arm64"; }};',
        'APT::Install-Recommends "false";',
        'APT::Sandbox::User "";',  # apt's own user may not be able to write here
        f'Dir::State "{apt}";',
        f'Dir::State::status "{apt}/status";',
        f'Dir::Cache "{apt}";',
        f'Dir::Etc::parts "{apt}/parts";',
        'Dir::Etc::main "/dev/null";',
    ]
    (apt / "apt.conf").write_text("\n".join([*reached, *settings, ""]), encoding="utf-8")
    env = {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    wanted = DEBS if qemu() else (*DEBS, f"qemu-user-static:{host}")
    complaints = []
    for step in (["update"], ["install", "--yes", "--download-only", *wanted]):
        try:
            output_of("apt-get", *step, env=env)
        except SetupError as error:  # one source of several may have nothing for arm64: the packages are what counts
            complaints.append(str(error))
            if step != ["update"]:
                raise SetupError("; ".join(complaints)) from None
    for deb in sorted((apt / "archives").glob("*.deb")):
        unpack(deb, part)
    if not (part / "lib").exists():  # a link that later releases have in a package of its own
        (part / "lib").symlink_to("usr/lib")
    shutil.rmtree(ROOT, ignore_errors=True)
    part.rename(ROOT)
    shutil.rmtree(apt)


def unpack(deb: Path, into: Path) -> None:
    """Unpack a Debian package; of those for this machine nothing but QEMU's emulator of aarch64."""
    only = []
    if not deb.stem.endswith(("_arm64", "_all")):
        if not deb.name.startswith(("qemu-user_", "qemu-user-static_")):
            return
        only = ["--wildcards", "./usr/bin/qemu-aarch64*"]
    tar = ["tar", "-x", "--no-same-owner", "-C", str(into), *only]
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as packed:
        unpacked = subprocess.run(tar, stdin=packed.stdout, check=False)
    if packed.returncode or unpacked.returncode:
        raise SetupError(f"{deb.name} cannot be unpacked")


def make_wheels(version: str) -> None:
    """Install the wheels for aarch64 and a version of Python, unless they are there."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line.partition("==")[0] in IMPORTED]
    made_of = "\n".join([version, *pins])
    record = WHEELS / "made-of.txt"
    if record.exists() and record.read_text(encoding="utf-8") == made_of:
        return
    print(f"fetching wheels for aarch64 and Python {version} (once, 75 MB)", file=sys.stderr)
    part = HOME / "wheels.part"
    for folder in (part, WHEELS):
        shutil.rmtree(folder, ignore_errors=True)
    wheels = [f"--platform={name}" for name in PLATFORMS]
    wheels += ["--only-binary=:all:", "--implementation=cp", f"--python-version={version}"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", f"--target={part}"]
    output_of(*pip, *wheels, *pins)
    (part / record.name).write_text(made_of, encoding="utf-8")
    part.rename(WHEELS)


def output_of(*command: str, env: Mapping[str, str] | None = None) -> str:
    """Return what a program prints; where it fails, its last complaint is the error."""
    try:
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise SetupError(f"{command[0]} is missing") from None
    except subprocess.CalledProcessError as error:
        complaints: list[str] = (error.stderr or error.stdout).strip().splitlines() or ["no complaint"]
        raise SetupError(f"{Path(command[0]).name} {' '.join(command[1:4])}: {complaints[-1]}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
