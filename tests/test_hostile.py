"""Hostile checkpoints, in every pickled container: all refused with what they tried, nothing executed, imported, written or bloated.

They are read in a process of their own under an audit hook, after harmless files of every format, so that what torch imports
on first use is there already."""

import json
import os
import pickle
import pickletools
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from test_readers import SONG, edm_pickle, flat, network

CANARY = "canary"
SOURCE = f"open({CANARY!r}, 'w').write('run')\nimport os\nos.system('touch {CANARY}')\nclass EDMPrecond: pass\n"
MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
MIB = 1 << 20


class Call:
    """Pickled as a call of whatever it is given."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def name(module, name):
    return f"c{module}\n{name}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def pair(*values):
    return b"(" + b"".join(values) + b"t"


def call(function, *args):
    return function + pair(*args) + b"R"


def double(times):
    """A tuple of itself, over and over: 2 ** times leaves."""
    return b")" + b"".join(b"q\x01h\x01\x86" for _ in range(times))


TOUCH = text(f"touch {CANARY}")
ORDERED, TENSOR = name("collections", "OrderedDict"), name("torch._utils", "_rebuild_tensor_v2")
FROM_TYPE = name("torch._tensor", "_rebuild_from_type_v2")
FLOATS = name("torch", "FloatStorage")
LIST_MODULE = name("torch.nn.modules.container", "ModuleList")
PROGRAMS = {  # what it does -> (program, what the message must say)
    "os.system": (pickle.dumps(Call(os.system, f"touch {CANARY}"), 2), f"it asks for `{os.system.__module__}.system`"),
    "os.system, protocol 4": (pickle.dumps(Call(os.system, f"touch {CANARY}"), 4), ".system`"),
    "os.system, protocol 0": (pickle.dumps(Call(os.system, f"touch {CANARY}"), 0), ".system`"),
    "os.system inside a dict": (b"\x80\x02}" + text("ema") + call(name("os", "system"), TOUCH) + b"s.", "`os.system`"),
    "subprocess": (pickle.dumps(Call(subprocess.Popen, ["touch", CANARY])), "`subprocess.Popen`"),
    "eval": (pickle.dumps(Call(eval, SOURCE)), "`builtins.eval`"),
    "exec, protocol 2": (pickle.dumps(Call(exec, SOURCE), 2), "`__builtin__.exec`"),
    "compile": (pickle.dumps(Call(compile, SOURCE, "", "exec")), "`builtins.compile`"),
    "open": (pickle.dumps(Call(open, CANARY, "w")), "`io.open`"),
    "import": (pickle.dumps(Call(__import__, "this")), "`builtins.__import__`"),
    "getattr chain": (
        b"\x80\x02" + call(call(name("builtins", "getattr"), name("os", "path"), text("os")), TOUCH) + b".",
        "`builtins.getattr`",
    ),
    "attrgetter": (b"\x80\x02" + call(name("operator", "attrgetter"), text("__globals__")) + b".", "attrgetter`"),
    "methodcaller": (b"\x80\x02" + call(name("operator", "methodcaller"), text("system"), TOUCH) + b".", "methodcaller`"),
    "functools.partial": (b"\x80\x02" + call(name("functools", "partial"), name("os", "system")) + b".", "partial`"),
    "runpy": (b"\x80\x02" + call(name("runpy", "run_path"), text(CANARY)) + b".", "`runpy.run_path`"),
    "torch.load": (b"\x80\x02" + call(name("torch.serialization", "load"), text(CANARY)) + b".", "serialization.load`"),
    "torch.hub": (b"\x80\x02" + call(name("torch.hub", "load"), text("a/b")) + b".", "`torch.hub.load`"),
    "numpy.load": (b"\x80\x02" + call(name("numpy", "load"), text(CANARY)) + b".", "`numpy.load`"),
    "a name with dots": (b"\x80\x04" + name("torch", "nn.modules.__builtins__") + b".", "`torch.nn.modules.__builtins__`"),
    "a name with dots, protocol 4": (b"\x80\x04" + text("os") + text("path.os.system") + b"\x93.", "`os.path.os.system`"),
    "globals of a permitted function": (
        b"\x80\x04" + text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93.",
        "`torch._utils._rebuild_tensor_v2.__globals__`",
    ),
    "a name made at run time": (
        b"\x80\x04" + text("system") + b"q\x000" + text("os") + b"q\x010h\x01h\x00\x93" + pair(TOUCH) + b"R.",
        "`os.system`",
    ),
    "a name that is no text": (b"\x80\x04]" + text("system") + b"\x93.", "a name made of `list` and `system`"),
    "a name of nothing printable": (b"\x80\x04" + text("\x1b[2J" + "a" * 5000) + text("b") + b"\x93.", "`?[2Jaaaa"),
    "alters a class": (b"\x80\x02" + ORDERED + b"}" + text("__init__") + b"Nsb.", "alters `collections.OrderedDict`"),
    "alters a function": (b"\x80\x02" + TENSOR + b"}" + text("__code__") + b"Nsb.", "it alters `torch._utils._rebuild_"),
    "alters a list": (b"\x80\x02]}" + text("append") + b"Nsb.", "it alters `list`"),
    "alters a tuple by its slots": (b"\x80\x02)N}" + text("x") + b"Ns\x86b.", "it alters `tuple`"),
    "its own __setstate__": (
        b"\x80\x02" + ORDERED + b")R}" + text("__setstate__") + name("os", "system") + b"sb" + TOUCH + b"b.",
        "`os.system`",
    ),
    "alters an OrderedDict with text": (b"\x80\x02" + ORDERED + b")R" + TOUCH + b"b.", "it alters `Dict`"),
    "alters a module twice": (b"\x80\x02" + LIST_MODULE + b")\x81}b" + TOUCH + b"b.", "container.ModuleList`"),
    "a type with a state of its own": (
        b"\x80\x02" + call(name("numpy", "dtype"), text("f8"), b"\x89", b"\x88") + pair(b"K\x03", TOUCH) + b"b.",
        "it alters `DType`",
    ),
    "calls text": (b"\x80\x02" + TOUCH + b")R.", "it calls `touch canary`"),
    "calls a dict": (b"\x80\x02})R.", "it calls `dict`"),
    "calls with no tuple": (b"\x80\x02" + ORDERED + b"]R.", "it calls `collections.OrderedDict` with `list`"),
    "odd arguments of OrderedDict": (b"\x80\x02" + call(ORDERED, b"K\x05") + b".", "it calls `collections.OrderedDict`"),
    "odd arguments of a tensor": (b"\x80\x02" + call(TENSOR, TOUCH) + b".", "it calls `torch._utils._rebuild_tensor_v2`"),
    "a tensor of no storage": (
        b"\x80\x02" + call(TENSOR, b"]", b"K\x00", pair(b"K\x02"), pair(b"K\x01"), b"\x89", b"N") + b".",
        "it calls `torch._utils._rebuild_tensor_v2`",
    ),
    "a parameter of no tensor": (
        b"\x80\x02" + call(name("torch._utils", "_rebuild_parameter"), TOUCH, b"\x89", b"N") + b".",
        "it calls `torch._utils._rebuild_parameter`",
    ),
    "makes a storage": (b"\x80\x02" + call(FLOATS, b"J\xff\xff\xff\x7f") + b".", "it calls `torch.FloatStorage`"),
    "another codec": (b"\x80\x02" + call(name("_codecs", "encode"), TOUCH, text("zlib")) + b".", "it calls `_codecs.enc"),
    "objects of numpy": (b"\x80\x02" + call(name("numpy", "dtype"), text("O8")) + b".", "the numpy type `O8`"),
    "a scalar of the wrong size": (
        b"\x80\x02"
        + call(name("numpy.core.multiarray", "scalar"), call(name("numpy", "dtype"), text("f8")), b"C\x01a")
        + b".",
        "it calls `numpy.core.multiarray.scalar`",
    ),
    "PERSID": (b"Pos.system\n.", "a persistent id `os.system`"),
    "BINPERSID": (b"\x80\x02" + pair(text("module"), b"NNNNN") + b"Q.", "a persistent id"),
    "BINPERSID of text": (b"\x80\x02" + TOUCH + b"Q.", "a persistent id"),
    "EXT1": (b"\x80\x02\x82\x01.", "the extension with code 1"),
    "EXT2": (b"\x80\x02\x83\x01\x01.", "the extension with code 257"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "the extension with code 1"),
    "INST": (b"(" + TOUCH + b"ios\nsystem\n.", "`os.system`"),
    "OBJ": (b"\x80\x02(" + ORDERED + b"o.", "the opcode OBJ"),
    "OBJ of os.system": (b"\x80\x02(" + name("os", "system") + TOUCH + b"o.", "`os.system`"),
    "NEWOBJ of a class": (b"\x80\x02" + name("subprocess", "Popen") + pair(TOUCH) + b"\x81.", "`subprocess.Popen`"),
    "NEWOBJ_EX": (b"\x80\x04" + ORDERED + b")}\x92.", "an object with keyword arguments"),
    "out-of-band buffers": (b"\x80\x05\x97\x98.", "the opcode NEXT_BUFFER"),
    "a bytearray": (b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "the opcode BYTEARRAY8"),
    "appends to an object": (b"\x80\x02" + ORDERED + b"Na.", "it appends to `collections.OrderedDict`"),
    "sets an item of an object": (b"\x80\x02" + TENSOR + TOUCH + b"Ns.", "it sets an item of `torch._utils"),
    "two values": (b"\x80\x02NN.", "it leaves something behind"),
    "an opcode of none": (b"\x80\x02\xff.", ""),
    "from below the stack": (b"\x80\x02N(R.", ""),
    "10 GB of bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 10**10) + b"a.", "10000000000 bytes"),
    "10 GB of text": (b"\x80\x04\x8d" + struct.pack("<Q", 10**10) + b"a.", "10000000000 bytes"),
    "2 GB of digits": (b"\x80\x02\x8b\xff\xff\xff\x7fa.", ""),
    "a number of a million digits": (b"\x80\x02\x8b" + struct.pack("<i", MIB) + b"\x7f" * MIB + b".", "an integer of"),
    "a decimal number of a million digits": (b"\x80\x02I" + b"9" * MIB + b"\n.", ""),
    "a memo of four billion": (b"\x80\x02Nr\xff\xff\xff\xff0\x8c\x02osc", ""),
    "a bytearray of 10 GB": (b"\x80\x02" + call(name("builtins", "bytearray"), b"\x8a\x05\x00\xe4\x0bT\x02") + b".", "arr"),
    "a range": (b"\x80\x02" + call(name("builtins", "list"), call(name("builtins", "range"), b"M\xff\xff")) + b".", "`builtins.list`"),
    "a function handed to one that calls": (
        b"\x80\x02" + call(FROM_TYPE, ORDERED, name("torch", "Tensor"), pair(b"]"), b"N") + b".",
        "_rebuild_from_type_v2`",
    ),
    "a call handed to one that calls": (
        b"\x80\x02" + call(FROM_TYPE, FROM_TYPE, name("torch", "Tensor"), pair(ORDERED, name("torch", "Tensor"), b")", b"N"), b"N") + b".",
        "_rebuild_from_type_v2`",
    ),
    "a type called": (b"\x80\x02" + call(name("torch", "Tensor"), b"J\xff\xff\xff\x7f") + b".", "`torch.Tensor`"),
    "a complex number of text": (b"\x80\x02" + call(name("builtins", "complex"), text("9" * 9999)) + b".", "`builtins.complex`"),
    "a device that is none": (b"\x80\x02" + call(name("torch", "device"), b"]") + b".", "`torch.device`"),
    "a bytearray of another codec": (
        b"\x80\x02" + call(name("__builtin__", "bytearray"), TOUCH, text("unicode_escape")) + b".",
        "`__builtin__.bytearray`",
    ),
    "a counter of lists": (b"\x80\x02" + call(name("collections", "Counter"), b"]") + b".", "`collections.Counter`"),
    "a tuple of tuples as a key": (b"\x80\x02}" + pair(pair(b"N"), b"N") + b"Ns.", "it uses `tuple` as a key"),
    "a tuple of a list as a key": (b"\x80\x02}" + pair(b"]", b"N") + b"Ns.", "as a key"),
    "a doubled tuple as a key": (b"\x80\x02}" + double(60) + b"Ns.", "it uses `tuple` as a key"),
    "a doubled tuple in a set": (b"\x80\x04\x8f(" + double(60) + b"\x90.", "it uses `tuple` as a key"),
    "a tuple of 100,000 levels as a key": (b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.", "it uses `tuple` as a key"),
    "a list of 100,000 levels": (b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", ""),
    "the same text encoded over and over": (
        b"\x80\x02" + text("x" * MIB) + b"q\x01" + text("latin1") + b"q\x02"
        + name("_codecs", "encode") + b"q\x03" + b"h\x03h\x01h\x02\x86R" * 20_000 + b".",
        "it calls `_codecs.encode` with more than the file can hold",
    ),
}  # fmt: skip


def blob(value=None, numel=4, announced=None, system=None, first=MAGIC):
    """A storage as EDM's pickles hold it, or with something else in one of its pickles."""
    if value is None:
        pid = pair(text("storage"), FLOATS, text("0"), text("cpu"), pickle.dumps(announced or numel)[2:-1], b"N")
        value = b"\x80\x02" + pid + b"Q."
    pickles = [*map(pickle.dumps, (first, 1001, system or SYSTEM)), value, pickle.dumps(["0"])]
    return b"".join(pickles) + struct.pack("<q", announced or numel) + b"\0" * 4 * numel


def storage(data):
    return call(name("torch.storage", "_load_from_bytes"), b"B" + struct.pack("<I", len(data)) + data)


def module(parameters=b"}", modules=b"}", kwargs=b"}", class_name=TOUCH):
    """An EDM network of these opcodes."""
    state = b"}(" + text("_parameters") + parameters + text("_modules") + modules + text("_init_kwargs") + kwargs + b"u"
    meta = b"}(" + text("type") + text("class") + text("module_src") + TOUCH + text("class_name") + class_name
    return call(name("torch_utils.persistence", "_reconstruct_persistent_obj"), meta + text("state") + state + b"u")


def ema(*args, **kwargs):
    return b"\x80\x02}" + text("ema") + module(*args, **kwargs) + b"s."


def tensor(numel=4, stride=b"K\x01", of=None):
    size = pair(pickle.dumps(numel)[2:-1])
    return call(TENSOR, of or storage(blob()), b"K\x00", size, pair(stride), b"\x89", b"N")


SYSTEM_CALL = pickle.dumps(Call(os.system, f"touch {CANARY}"), 2)
EDM_ONLY = {
    "a million sets": (b"\x80\x04" + b"\x8f" * 10**6 + b".", "a program of more than 500,000 steps"),
    "the same pairs ordered over and over": (
        b"\x80\x02](" + pair(b"K\x01", b"K\x01") * 5_000 + b"eq\x01" + ORDERED + b"q\x03" + b"h\x03h\x01\x85R" * 20_000 + b".",
        "it calls `collections.OrderedDict` with more than the file can hold",
    ),
    "a hostile pickle as a storage": (ema(b"}" + text("a") + storage(blob(SYSTEM_CALL)) + b"s"), ".system`"),
    "a hostile pickle before a storage": (ema(b"}" + text("a") + storage(SYSTEM_CALL) + b"s"), ".system`"),
    "a hostile pickle for the system": (
        ema(b"}" + text("a") + storage(blob(system=Call(os.system, f"touch {CANARY}"))) + b"s"),
        ".system`",
    ),
    "another number for magic": (ema(b"}" + text("a") + storage(blob(first=1)) + b"s"), "a storage that is no torch file"),
    "a storage larger than it is": (
        ema(b"}" + text("a") + tensor(of=storage(blob(announced=10**12))) + b"s"),
        "it announces a storage of 4,000,000,000,000 bytes and holds 16",
    ),
    "a tensor larger than its storage": (
        ema(b"}" + text("a") + tensor(10**12, stride=b"K\x00") + b"s"),
        "it cuts a tensor of 1,000,000,000,000 values",
    ),
    "a tensor beyond its storage": (ema(b"}" + text("a") + tensor(3, stride=b"K\x02") + b"s"), "up to number 4, out of 4"),
    "a tensor of a negative step": (
        ema(b"}" + text("a") + tensor(2, stride=b"J\xff\xff\xff\xff") + b"s"),
        "it calls `torch._utils._rebuild_tensor_v2`",
    ),
    "one storage as a thousand tensors": (
        ema(
            b"}" + text("a") + tensor(1 << 18, of=storage(blob(numel=1 << 18))) + b"q\x05s"
            + b"".join(text(f"b{i}") + b"h\x05s" for i in range(1000))
        ),
        "its tensors hold more than the file",
    ),
    "a configuration without end": (ema(kwargs=b"}" + text("a") + double(60) + b"s"), "its configuration has no end"),
    "a configuration of itself": (ema(kwargs=b"}q\x05" + text("a") + b"h\x05s"), "its configuration has no end"),
    "a class in the configuration": (
        ema(kwargs=b"}" + text("a") + ORDERED + b"s"),
        "its configuration holds `collections.OrderedDict`",
    ),
    "a name of doubled tuples": (ema(class_name=double(60)), "it calls `torch_utils.persistence._reconstruct_pers"),
    "modules of one another": (ema(modules=b"}q\x05" + text("a") + module(modules=b"h\x05") + b"s"), "contain each other"),
    "two to the fifteenth modules": (
        ema(modules=b"}" + b"".join(b"q\x050}" + text("a") + module(modules=b"h\x05") + b"q\x06s" + text("b") + b"h\x06s"
                                    for _ in range(15))),
        "contain each other, or are too many",
    ),
    "a part with dots in its name": (ema(b"}" + text("a.b") + tensor() + b"s"), "has a part named `a.b`"),
    "a part that is no tensor": (ema(b"}" + text("a") + TOUCH + b"s"), "a part `a` that is no tensor"),
    "a module that is none": (ema(modules=b"}" + text("a") + TOUCH + b"s"), "a part `a` that is no module"),
    "parts that are none": (ema(TOUCH), "is not built as one"),
}  # fmt: skip


def in_zip(program, path, method=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for member, content in members.items():
            archive.writestr(f"archive/data/{member[1:]}", content)


def in_legacy(program, path, values=b""):
    head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, SYSTEM))
    path.write_bytes(head + program + pickle.dumps(["0"] if values else [], 2) + values)


def stored(numel, shape, stride):
    """A state dict {"a": a tensor of a storage with key 0}."""
    pid = pair(text("storage"), FLOATS, text("0"), text("cpu"), pickle.dumps(numel)[2:-1])
    return b"\x80\x02}" + text("a") + tensor(shape, stride, of=pid + b"Q") + b"s."


def write(folder):
    """(file, format, what the message must say), for every hostile file."""
    wanted = []

    def add(writer, program, format, told, **kwargs):
        path = folder / f"{len(wanted)}.pth"
        writer(program, path, **kwargs)
        wanted.append((path.name, format, told))

    for program, told in PROGRAMS.values():
        add(lambda p, path: path.write_bytes(p), program, "edm-pickle", told)
        add(in_zip, program, "state-dict", told)
        add(in_legacy, program, "state-dict", told)
    for program, told in EDM_ONLY.values():
        add(lambda p, path: path.write_bytes(p), program, "edm-pickle", told)
    add(lambda p, path: torch.save(p, path), {"a": Call(os.system, f"touch {CANARY}")}, "score-sde", ".system`")
    add(lambda p, path: torch.save(p, path), [Call(eval, SOURCE)], "ncsnv2-list", "eval`")
    add(lambda p, path: torch.save(p, path), Call(exec, SOURCE), "robustbench", "exec`")
    good, huge = struct.pack("<q4f", 4, 1, 2, 3, 4), "it cuts a tensor of 1,000,000,000,000 values"
    add(in_zip, stored(4, 10**12, b"K\x00"), "state-dict", huge, _0=good[8:])
    add(in_legacy, stored(4, 10**12, b"K\x00"), "state-dict", huge, values=good)
    more = "it announces a storage of 4,000,000,000,000 bytes and holds 16"
    add(in_zip, stored(10**12, 10**12, b"K\x01"), "state-dict", more, _0=good[8:])
    add(in_legacy, stored(10**12, 10**12, b"K\x01"), "state-dict", "announces 4,000,000,000,008 bytes", values=good)
    bomb = {"method": zipfile.ZIP_DEFLATED, "_0": bytes(400 * MIB)}
    add(in_zip, stored(100 * MIB, 4, b"K\x01"), "state-dict", "it unpacks to 419,4", **bomb)
    with pytest.warns(UserWarning, match="Duplicate name"):
        add(twice, stored(4, 4, b"K\x01"), "state-dict", "two members of one name")
    return wanted


def twice(program, path):
    in_zip(program, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data.pkl", SYSTEM_CALL)


CHILD = """
import codecs, json, resource, sys, time
from pathlib import Path
from purebench.assets import readers, unpickle
from purebench.errors import UserError

events, quiet = [], True
WATCHED = ("exec", "compile", "import", "os.", "subprocess.", "pty.", "socket.", "ctypes.", "shutil.", "tempfile.", "marshal.",
           "code.", "function.", "pickle.", "cpython.run", "builtins.", "urllib.", "webbrowser.", "sys.set", "sys._get", "gc.")

def hook(event, args):
    if quiet:
        return
    if event == "open":
        if set(str(args[1])) & set("wax+") or (isinstance(args[2], int) and args[2] & 0o1103):
            events.append(["open", str(args[0])])
    elif event.startswith(WATCHED) and event != "os.listdir":
        events.append([event, str(args)[:80]])

def read(file, format):
    global quiet
    start, memory, error = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, None
    events.clear()
    quiet = False
    try:
        unpickle.read(Path(file)) if format == "unpickle" else readers.state(file, format)
    except UserError as e:
        error = [e.message, e.hint, e.code]
    except BaseException as e:
        error = [f"{type(e).__name__}: {e}", "", -1]
    quiet = True
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
    return {"file": file, "error": error, "events": list(events), "MiB": grown, "s": time.process_time() - start}

harmless, control, hostile, embedded = json.load(sys.stdin)
sys.addaudithook(hook)
for codec in ("cp437", "latin1", "ascii", "unicode_escape", "raw_unicode_escape"):
    codecs.lookup(codec)  # the standard library's own, imported on first use
for file, format in harmless:
    readers.state(file, format)
events_seen = read(*control)  # something that does import and write, to see that the hook sees
print(json.dumps({
    "control": events_seen, "hostile": [read(file, format) for file, format, _ in hostile],
    "embedded": [read(file, "unpickle") for file in embedded],
}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    wanted = write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        net = network("edm", SONG, 0)
        (folder / "good.pkl").write_bytes(edm_pickle(net))
        (folder / "again.pkl").write_bytes(edm_pickle(net))
        torch.save(flat().state_dict(), folder / "good.zip")
        torch.save(flat().state_dict(), folder / "good.old", _use_new_zipfile_serialization=False)
        embedded = [f"source{protocol}.pkl" for protocol in (2, 3, 4, 5)]
        for protocol, file in enumerate(embedded, 2):
            (folder / file).write_bytes(edm_pickle(net, protocol=protocol, source=SOURCE))
    harmless = [("good.pkl", "edm-pickle"), ("good.zip", "state-dict"), ("good.old", "state-dict")]
    env = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "PUREBENCH_CACHE": str(folder),
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps([harmless, ("again.pkl", "edm-pickle"), wanted, embedded]),
        capture_output=True, text=True, cwd=folder, env=env, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, wanted, json.loads(done.stdout)


NAMES = [f"{what} ({kind})" for what in PROGRAMS for kind in ("edm", "zip", "legacy")] + [*EDM_ONLY]


def test_all_are_refused_and_nothing_is_executed(outcome, said):
    folder, wanted, told = outcome
    wrong = []
    for i, ((_, _, says), got) in enumerate(zip(wanted, told["hostile"], strict=True)):
        message, hint, code = got["error"] or ["it was read", "", 0]
        fine = code == 3 and says in message and len(message) < 400 and message.isprintable() and "delete it" in hint
        if not fine or got["events"] or got["MiB"] > 250 or got["s"] > 5:
            wrong.append((NAMES[i] if i < len(NAMES) else got["file"], says, got))
    assert not wrong, "\n".join(map(str, wrong))
    assert not (folder / CANARY).exists()
    said(f"{len(wanted)} of {len(wanted)} hostile files refused, nothing executed")


def test_embedded_source_is_never_run(outcome):
    folder, _, told = outcome
    assert [got["error"] for got in told["embedded"]] == [None] * 4
    assert [got["events"] for got in told["embedded"]] == [[]] * 4
    assert not (folder / CANARY).exists()


def test_the_hook_sees_and_the_files_are_hostile(outcome, tmp_path, monkeypatch):
    _, _, told = outcome
    assert {event for event, _ in told["control"]["events"]} >= {"open", "os.rename"}  # the converted files
    monkeypatch.chdir(tmp_path)
    pickle.loads(SYSTEM_CALL)
    assert (tmp_path / CANARY).exists()


def test_the_library_does_only_what_makes_or_moves_plain_values():
    """The reader is the library's with methods replaced: none that calls, imports or alters may have been left as it was."""
    from purebench.assets.unpickle import OPERATIONS

    opcodes = {opcode.code.encode("latin1"): opcode.name for opcode in pickletools.opcodes}
    library = {opcodes[c] for c, method in OPERATIONS.items() if method is pickle._Unpickler.dispatch[c[0]]}
    calling = (
        "REDUCE BUILD INST OBJ NEWOBJ NEWOBJ_EX STACK_GLOBAL EXT1 EXT2 EXT4 NEXT_BUFFER READONLY_BUFFER BYTEARRAY8"
    )
    altering = "APPEND APPENDS SETITEM SETITEMS ADDITEMS DICT FROZENSET"
    assert not library & {*calling.split(), *altering.split(), "FRAME", "STOP"}
    assert library >= {"GLOBAL", "PERSID", "BINPERSID"}  # by way of `find_class` and `persistent_load`, both documented


def test_a_file_above_the_size_is_refused_before_it_is_opened(tmp_path):
    from purebench.assets import unpickle
    from purebench.errors import UserError

    (tmp_path / "a.pkl").write_bytes(b"x" * 11)
    with pytest.raises(UserError, match="it has 11 bytes, expected at most 10"):
        unpickle.read(tmp_path / "a.pkl", max_bytes=10)
