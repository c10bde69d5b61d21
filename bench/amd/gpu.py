"""OpenCL C compiled by clang for an AMD GPU, and run instruction by instruction by tinygrad's emulator.

The emulator finds no timing, no race and no missing wait. It flushes denormals, as the kernels' compiler may assume or
not. RDNA is waves of 32 in it.
"""

import collections
import ctypes
import importlib.util
import os
import re
import struct
import subprocess
import sys
import tempfile

import numpy

ARCHITECTURE = {"gfx90a": "cdna", "gfx942": "cdna", "gfx1100": "rdna3", "gfx1201": "rdna4"}
# The libraries of ROCm 5.2, which Debian has, know none of these; of the version they only ask for instructions that
# their near relatives have, too.
LIBRARY_ISA = {"gfx90a": "90a", "gfx942": "940", "gfx1100": "1036", "gfx1201": "1036"}
WAVE = {"cdna": 64, "rdna3": 32, "rdna4": 32}

# What is wrong in the emulator (tinygrad a9069c177a9d), what is put in its place, and why.
MENDED = [
    # Bytes of an int8 MFMA are put into an array of uint32 as int32.
    (
        "return (byte.cast(dtypes.int32) ^ UOp.const(0x80, dtypes.int32)) - UOp.const(0x80, dtypes.int32)\n"
        "    if is_f32_src",
        "return ((byte.cast(dtypes.int32) ^ UOp.const(0x80, dtypes.int32)) - UOp.const(0x80, dtypes.int32))"
        ".bitcast(dtypes.uint32)\n    if is_f32_src",
    ),
    # Lanes that are switched off read and write local memory where their registers happen to point.
    (
        "      addr = ctx.rvgpr_dyn(addr_reg, lane)\n      # Some DS",
        "      addr = _lane_active(exec_mask, lane).where(ctx.rvgpr_dyn(addr_reg, lane), _c(0))\n      # Some DS",
    ),
    (
        "'vgpr_a': ctx.rvgpr_dyn(addr_reg, lane)",
        "'vgpr_a': _lane_active(exec_mask, lane).where(ctx.rvgpr_dyn(addr_reg, lane), _c(0))",
    ),
    # A WMMA that adds to a constant, 0 say, adds to the register of the constant's code.
    (
        "  src2_r = (src2_r >= 256).where(src2_r - _c(256), src2_r)\n",
        "  src2_is_vgpr = src2_r >= _c(256)\n"
        "  src2_scalar = ctx.rsgpr_dyn(src2_r, src2_is_vgpr.ne(True))\n"
        "  src2_r = src2_is_vgpr.where(src2_r - _c(256), _c(0))\n",
    ),
    (
        "mat_c = [ctx.rvgpr_dyn(src2_r + _c(vgpr), UOp.const(lane, dtypes.int)).bitcast(out_dt)",
        "mat_c = [src2_is_vgpr.where(ctx.rvgpr_dyn(src2_r + _c(vgpr), UOp.const(lane, dtypes.int)), src2_scalar)"
        ".bitcast(out_dt)",
    ),
]

# Invalidations of caches, which the emulator has none of and can't compile: their first bytes and their lengths. No-ops
# are put in their place.
INVALIDATIONS = {
    "rdna3": [(bytes.fromhex("0000ace0"), 8), (bytes.fromhex("0000b0e0"), 8)],
    "rdna4": [(bytes.fromhex("7cc00aee"), 12)],
}
S_NOP = bytes.fromhex("000080bf")


def emulator(tinygrad, clang):
    """The emulator's module, of a checkout of tinygrad, mended."""
    sys.path.insert(0, tinygrad)
    tools = tempfile.mkdtemp()  # it calls whatever clang is on the path, for this machine
    os.symlink(clang, os.path.join(tools, "clang"))
    os.environ["PATH"] = tools + os.pathsep + os.environ["PATH"]
    name = "test.mockgpu.amd.emu"
    file = os.path.join(tinygrad, "test/mockgpu/amd/emu.py")
    with open(file) as source:
        text = source.read()
    for wrong, right in MENDED:
        if wrong not in text:
            print("not in this emulator: " + wrong.strip().splitlines()[0], file=sys.stderr)
        text = text.replace(wrong, right)
    module = importlib.util.module_from_spec(importlib.util.spec_from_file_location(name, file))
    sys.modules[name] = module
    exec(compile(text, file, "exec"), module.__dict__)
    return module


def call(command):
    """What it prints.

    :raise ValueError: if it fails, with what it says
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr)
    return done.stdout


class Compiler:
    """clang, and the folder of ROCm's device libraries as bitcode."""

    def __init__(self, clang, libraries):
        self.clang, self.libraries = clang, libraries

    def version(self):
        return subprocess.check_output([self.clang, "--version"], text=True).splitlines()[0]

    def options(self, target):
        wave = "on" if WAVE[ARCHITECTURE[target]] == 64 else "off"
        libraries = [
            "opencl",
            "ocml",
            "ockl",
            "oclc_daz_opt_off",
            "oclc_unsafe_math_off",
            "oclc_finite_only_off",
            "oclc_correctly_rounded_sqrt_on",
            "oclc_wavefrontsize64_" + wave,
            "oclc_isa_version_" + LIBRARY_ISA[target],
            "oclc_abi_version_500",
        ]
        linked = [
            option
            for library in libraries
            for option in ("-Xclang", "-mlink-builtin-bitcode", "-Xclang", f"{self.libraries}/{library}.bc")
        ]
        return [
            *("-target", "amdgcn-amd-amdhsa", "-mcpu=" + target, "-x", "cl", "-cl-std=CL2.0"),
            *("-Xclang", "-finclude-default-header", "-nogpulib", "-mcode-object-version=5", "-O3", "-w"),
            *linked,
        ]

    def program(self, text, target, *more):
        with tempfile.TemporaryDirectory() as folder:
            source, made = os.path.join(folder, "k.cl"), os.path.join(folder, "k.co")
            with open(source, "w") as out:
                out.write(text)
            call([self.clang, *self.options(target), *more, "-o", made, source])
            with open(made, "rb") as code:
                image = code.read()
            notes = subprocess.check_output([self.tool("llvm-readelf"), "--notes", made], text=True)
            return Program(image, notes, target)

    def assembly(self, text, target, *more):
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "k.cl")
            with open(source, "w") as out:
                out.write(text)
            return call([self.clang, *self.options(target), *more, "-S", "-o", "-", source])

    def tool(self, name):
        return subprocess.check_output([self.clang, "-print-prog-name=" + name], text=True).strip()


class Program:
    """A code object, loaded into this process."""

    def __init__(self, image, notes, target):
        self.target, self.image, self.kernels = target, image, {}
        (programs,) = struct.unpack_from("<Q", image, 32)
        size, count = struct.unpack_from("<HH", image, 54)
        loads, dynamic = [], None
        for p in range(count):
            head = struct.unpack_from("<IIQQQQQQ", image, programs + p * size)
            kind, _, offset, address, _, in_file, in_memory, _ = head
            if kind == 1:
                loads.append((offset, address, in_file, in_memory))
            elif kind == 2:
                dynamic = offset, in_file
        end = max(address + in_memory for _, address, _, in_memory in loads)
        self.memory = ctypes.create_string_buffer(end + 8192)
        self.base = (ctypes.addressof(self.memory) + 4095) & ~4095
        for offset, address, in_file, _ in loads:
            ctypes.memmove(self.base + address, image[offset : offset + in_file], in_file)
        for offset in range(dynamic[0], dynamic[0] + dynamic[1], 16) if dynamic else ():
            tag, value = struct.unpack_from("<QQ", image, offset)
            if tag in (7, 17) and value:
                raise ValueError("the code object has relocations")
        self.symbols = self._symbols()
        for text in notes.split("  - .agpr_count" if ".agpr_count" in notes else "  - .args")[1:]:
            name = re.search(r"\n\s+\.symbol:\s+'?([\w.]+)\.kd", text).group(1)
            self.kernels[name] = [
                {key: value for key, value in re.findall(r"\.(\w+):\s+'?([\w.*]+)", argument)}
                for argument in re.split(r"\n\s+- ", text.split(".args:")[-1] if ".args:" in text else text)
                if ".value_kind" in argument
            ]

    def _symbols(self):
        sections, symbols = struct.unpack_from("<Q", self.image, 40)[0], {}
        size, count = struct.unpack_from("<HH", self.image, 58)
        heads = [struct.unpack_from("<IIQQQQIIQQ", self.image, sections + s * size) for s in range(count)]
        for _, kind, _, _, offset, length, link, _, _, entry in heads:
            if kind not in (2, 11):
                continue
            strings = heads[link][4]
            for at in range(offset, offset + length, entry):
                name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", self.image, at)
                end = self.image.index(b"\0", strings + name)
                symbols[self.image[strings + name : end].decode()] = value
        return symbols

    def facts(self, kernel):
        lds, scratch, _ = struct.unpack("<III", ctypes.string_at(self.base + self.symbols[kernel + ".kd"], 12))
        return {"lds": lds, "scratch": scratch}

    def run(self, emu, kernel, groups, group, arguments):
        """Launches groups (x, y) of (x) work-items; arguments are arrays of numpy, bytes as they are, or numbers.

        :return: instructions executed, by name
        """
        at = self.base + self.symbols[kernel + ".kd"]
        lds, scratch, _, _, entry = struct.unpack("<IIIIq", ctypes.string_at(at, 24))
        _, _, rsrc2, properties, _ = struct.unpack("<IIIHH", ctypes.string_at(at + 44, 16))
        given = iter(arguments)
        described = self.kernels[kernel]
        kernargs = ctypes.create_string_buffer(max(int(a["offset"]) + int(a["size"]) for a in described) + 256)
        hidden = {
            "hidden_block_count_x": groups[0],
            "hidden_block_count_y": groups[1],
            "hidden_block_count_z": 1,
            "hidden_group_size_x": group,
            "hidden_group_size_y": 1,
            "hidden_group_size_z": 1,
            "hidden_grid_dims": 2,
        }
        for argument in described:
            offset, size, kind = int(argument["offset"]), int(argument["size"]), argument["value_kind"]
            value = hidden.get(kind, 0) if kind.startswith("hidden") else next(given)
            if isinstance(value, numpy.ndarray):
                value = value.ctypes.data
            if isinstance(value, float):
                value = struct.unpack("<I", struct.pack("<f", value))[0]
            kernargs[offset : offset + size] = int(value).to_bytes(size, "little", signed=value < 0)
        if next(given, None) is not None:
            raise ValueError(f"{kernel}: more arguments than {described}")
        packet = struct.pack("<HHHHHHIII", 0, 2, group, 1, 1, 0, groups[0] * group, groups[1], 1) + bytes(40)
        packet = ctypes.create_string_buffer(packet)
        registers = []
        for bit, value, count in (
            (0, 0, 4),
            (1, ctypes.addressof(packet), 2),
            (2, 0, 2),
            (3, ctypes.addressof(kernargs), 2),
            (4, 0, 2),
            (5, 0, 2),
            (6, scratch, 1),
        ):
            if properties >> bit & 1:
                registers += [value >> 32 * r & 0xFFFFFFFF for r in range(count)]
        users = rsrc2 >> 1 & 31
        registers += [0] * (users - len(registers))  # preloaded arguments, which the kernel then loads itself
        rsrc2 = rsrc2 & ~(511 << 15) | -(-lds // 512) << 15
        counts = collections.Counter()
        decode = emu._decode_at

        def counted(pc, arch):
            for first, length in INVALIDATIONS.get(arch, ()):
                if ctypes.string_at(pc, 4) == first:
                    ctypes.memmove(pc, S_NOP * (length // 4), length)
            (program, runtime), inst = decode(pc, arch)
            name, run = emu._op_name(inst), runtime.fxn

            class Counted:
                @staticmethod
                def fxn(*buffers):
                    counts[name] += 1
                    run(*buffers)

            return (program, Counted), inst

        emu._decode_at = counted
        try:
            emu.run_asm(
                at + entry,
                1 << 20,
                *(groups[0], groups[1], 1, group, 1, 1),
                ctypes.addressof(kernargs),
                rsrc2,
                scratch,
                ARCHITECTURE[self.target],
                registers,
            )
        finally:
            emu._decode_at = decode
        return counts
