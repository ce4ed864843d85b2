"""`purebench doctor`: what would not work here and why, before a run of hours finds out. Imports no torch: it must be able to say that
torch is what is broken.

A check yields findings. What a library does is tried in another process (`probe`), what is on disk is looked at by
`storage`. Nothing is changed, and no connection is opened.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from purebench import assets, registry
from purebench.assets import bytes_text, request, sources
from purebench.errors import UserError, unknown
from purebench.running import probe
from purebench.running.finding import Finding, in_a_line

IMPORTS = (
    "torchvision",
    "torchsde",
    "pyautoattack",
    "numpy",
    "pandas",
    "scipy",
    "PIL",
    "pyarrow",
    "requests",
    "safetensors",
)
EXTRAS = {"corruptions": "the dataset `corrupted`"}  # extra -> what needs it
DISTRIBUTIONS = {"PIL": "pillow"}  # module -> its package, where that is called otherwise
CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def findings(out: Path) -> Iterator[Finding]:
    """Everything that was looked at, as it is found; out: the folder of records."""
    if sys.platform == "win32":
        # Nothing else can even be imported there.
        said = "Windows: records are locked as Linux and macOS do it"
        yield Finding("python", "wrong", said, "use WSL")
        return
    for topic, check in _checks().items():
        try:
            yield from check(out)
        except UserError as error:
            yield Finding(topic, "wrong", error.message, error.hint)
        # A check that fails is a finding too, whatever broke it: this command is for environments that nobody foresaw.
        except Exception as error:
            yield Finding(
                topic,
                "wrong",
                f"could not be looked at: {in_a_line(error)}",
                "nobody foresaw this: please report the line",
            )


def _checks() -> dict[str, Callable[[Path], Iterator[Finding]]]:
    from purebench.running import storage

    return {
        "python": _python,
        "packages": _packages,
        "libraries": _libraries,
        "variables": storage.variables,
        "cache": storage.cache,
        "checkpoints": storage.checkpoints,
        "plug-ins": _plugins,
        "network": _network,
        "results": storage.results,
    }


# ---- Python and packages -------------------------------------------------------------------------


def _python(_: Path) -> Iterator[Finding]:
    wanted, version = _project()[0], platform.python_version()
    said = f"{version} at {sys.executable}, {platform.platform()}"
    if _holds(version, wanted):
        yield Finding("python", "ok", said)
    else:
        yield Finding("python", "wrong", f"{said}: not {wanted}", f"make an environment with Python {wanted}")


def _packages(_: Path) -> Iterator[Finding]:
    good = []
    for text, extra in _project()[1]:
        name, wanted = _requirement(text)
        version = _version(name)
        if version and _holds(version, wanted):
            good.append(f"{name} {version}")
            continue
        said = f"{name} {version} is not {wanted}" if version else f"{name} is not installed"
        if extra:
            need = EXTRAS.get(extra, f"what purebench[{extra}] is for")
            yield Finding("packages", "note", f"{said}: {need} does not work", f"`pip install 'purebench[{extra}]'`")
        else:
            yield Finding("packages", "wrong", said, f"`pip install '{name}{wanted}'`")
    if good:
        yield Finding("packages", "ok", ", ".join(good))


def _version(name: str) -> str:
    """Of an installed package; empty if it is not."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _project() -> tuple[str, list[tuple[str, str]]]:
    """(which Pythons, [(requirement, extra or "")]): of the checkout, whose installed copy may be older, else of the installed package."""
    file = assets.PACKAGE.parent / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {})
        listed = [(text, "") for text in project["dependencies"]]
        return project["requires-python"], listed + [(text, extra) for extra, texts in extras.items() for text in texts]
    found = metadata.metadata("purebench")
    listed = []
    for text in metadata.requires("purebench") or ():
        requirement, _, condition = text.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", condition)
        listed.append((requirement.strip(), extra[1] if extra else ""))
    return found["Requires-Python"] or "", listed


def _requirement(text: str) -> tuple[str, str]:
    """`torch>=2.11` -> (torch, >=2.11)"""
    name = re.match(r"[A-Za-z0-9._-]*[A-Za-z0-9]", text)
    if name is None:
        raise UserError(f"cannot read the requirement `{text}`", "reinstall purebench")
    return name[0], text[name.end() :].partition(";")[0].strip()


def _holds(version: str, wanted: str) -> bool:
    """Whether a version is in its range. Without the package that knows, what cannot be compared passes for good."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    # A nightly build of torch is what its user wanted.
    return SpecifierSet(wanted).contains(version, prereleases=True)


# ---- libraries and devices -----------------------------------------------------------------------


def _libraries(_: Path) -> Iterator[Finding]:
    """Whether what is installed can be imported too, and what torch can compute on; in one process, since torch takes seconds."""
    from purebench.running import runner

    steps = ["import:torch", "device:cpu", "device:cuda", *(f"import:{name}" for name in IMPORTS)]
    answers = probe.run(steps)
    broken = {
        step: why for step, answer in answers.items() if step.startswith("import:") and (why := answer.get("error"))
    }
    for step, why in broken.items():
        name = step.partition(":")[2]
        hint = f"`pip install --force-reinstall {DISTRIBUTIONS.get(name, name)}`"
        yield Finding("libraries", "wrong", f"{name} cannot be imported: {why}", hint)
    if not broken:
        yield Finding("libraries", "ok", f"torch, {', '.join(IMPORTS)} can be imported")
    if "import:torch" in broken:
        yield Finding("devices", "wrong", "none, without torch", "mend torch first")
        return
    cpu = answers["device:cpu"]
    if why := cpu.get("error") or cpu["devices"][0]["error"]:
        yield Finding("devices", "wrong", f"cpu: {why}", "take a torch that is built for this processor")
    else:
        workers = runner.default_workers("cpu")
        said = f"cpu, {runner.cores()} cores{_memory()}; {workers} workers of one thread if nothing is said"
        yield Finding("devices", "ok", said)
    yield from _gpus(answers["device:cuda"], runner.gpu_is_here())


def _memory() -> str:
    """`, 12.3 GB of memory available`; empty where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return ""
    return f", {bytes_text(kilobytes * 1024)} of memory available"


def _gpus(cuda: dict[str, Any], here: bool) -> Iterator[Finding]:
    """here: whether the system shows one."""
    for gpu in cuda.get("devices", ()):
        if gpu["error"]:
            hint = "driver and torch have to fit; `--device cpu` works without"
            yield Finding("devices", "wrong", f"{gpu['name']}: {gpu['error']}", hint)
        else:
            memory = f"{bytes_text(gpu['free'])} of {bytes_text(gpu['total'])} free"
            yield Finding("devices", "ok", f"{gpu['name']} {gpu['hardware']}, {memory}")
    if cuda.get("devices"):
        return
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if cuda.get("error"):
        yield Finding("devices", "wrong", f"cuda: {cuda['error']}", "`--device cpu` works without")
    elif not here:
        yield Finding("devices", "ok", "no GPU is here")
    elif hidden is not None and hidden.strip() in ("", "-1"):
        said = f"a GPU is here, and CUDA_VISIBLE_DEVICES=`{hidden}` hides it"
        yield Finding("devices", "note", said, "unset it to use the GPU")
    elif not cuda["build"]:
        said = "a GPU is here, and this torch is built without CUDA"
        yield Finding("devices", "wrong", said, "install torch's CUDA build (pytorch.org says how)")
    else:
        said = f"a GPU is here, and torch cannot use it: {cuda['why']}"
        yield Finding("devices", "wrong", said, "update the driver, or take a torch that is built for it")


# ---- plug-ins and network ------------------------------------------------------------------------


def _plugins(_: Path) -> Iterator[Finding]:
    groups = [group for group in metadata.entry_points().groups if group.startswith("purebench.")]
    found = [entry for group in sorted(groups) for entry in metadata.entry_points(group=group)]
    steps, good = {}, []
    for entry in found:
        kind = entry.group.removeprefix("purebench.")
        what, package = f"the {kind} `{entry.name}`", entry.dist.name if entry.dist else entry.value
        mend = f"mend {package}, or uninstall it"
        if kind not in registry.NAMES:
            hint = unknown("group", entry.group, [f"purebench.{name}" for name in registry.NAMES]).hint
            yield Finding("plug-ins", "wrong", f"{package} adds to `{entry.group}`, which is no group", hint)
        elif entry.name in registry.NAMES[kind]:
            said = f"{package} has {what}, and so has purebench, which wins"
            yield Finding("plug-ins", "note", said, "give it another name")
        elif why := _unreadable(kind, entry.name):
            yield Finding("plug-ins", "wrong", f"{what} of {package} cannot be read: {why}", mend)
        else:
            steps[f"plugin:{kind}:{entry.name}"] = (f"{what} of {package}", mend)
    for step, answer in probe.run(list(steps)).items():
        what, mend = steps[step]
        if answer.get("error"):
            yield Finding("plug-ins", "wrong", f"{what} does not load: {answer['error']}", mend)
        else:
            good.append(what)
    if good or not found:
        yield Finding("plug-ins", "ok", ", ".join(good) or "none")


def _unreadable(kind: str, name: str) -> str:
    """Why a plug-in cannot be read as every command reads it, without an import."""
    try:
        registry.parameters(kind, name)
        registry.info(kind, name)
    except UserError as error:
        return error.message
    # A file with a typing error, or literals that are none.
    except (SyntaxError, ValueError, OSError) as error:
        return in_a_line(error)
    return ""


def _network(_: Path) -> Iterator[Finding]:
    said, wrong = [], False
    for name in PROXIES:
        # The one in small letters wins.
        if not (proxy := os.environ.get(name.lower()) or os.environ.get(name)):
            continue
        name = name if proxy == os.environ.get(name) else name.lower()
        try:
            parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            # Without what stands before the @: what is printed here is pasted into reports.
            said.append(f"{name} {parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else ""))
        except ValueError as error:
            wrong = True
            yield Finding("network", "wrong", f"{name} is no address: {error}", "mend or unset it")
            continue
        if not request.is_url(proxy if "://" in proxy else f"http://{proxy}", request.SCHEMES):
            wrong = True
            said.pop()
            yield Finding(
                "network", "wrong", f"{name} is no URL of a proxy", f"`export {name}=http://HOST:PORT`, or unset it"
            )
            continue
        if parts.scheme.startswith("socks") and not _version("PySocks"):
            wrong = True
            yield Finding("network", "wrong", f"{said[-1]}: no download without PySocks", "`pip install PySocks`")
    for name in CERTIFICATES:
        if path := os.environ.get(name):
            said.append(f"{name} {path}")
            if not Path(path).exists():
                wrong = True
                yield Finding(
                    "network", "wrong", f"{said[-1]}: there is no such file, and no download", "mend or unset it"
                )
    try:
        if (hub := sources.endpoint()) != sources.HUB:
            said.append(f"HF_ENDPOINT {sources.shown(hub)}")
        # Looked at for what it cannot be, and not shown.
        said += ["HF_TOKEN is set"] * bool(sources.token(hub))
    except UserError as error:
        wrong = True
        yield Finding("network", "wrong", error.message, error.hint)
    if not wrong:
        said = said or ["no proxy, the usual certificates"]
        yield Finding("network", "ok", f"{', '.join(said)}; no connection was tried")
