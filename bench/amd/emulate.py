#!/usr/bin/env python3
"""Runs what TornadoVM makes of the layer's kernels for OpenCL as machine code for AMD's GPUs, in an emulator, and
compares with what the interpreter computed of the same arguments. README.md has how."""

import argparse
import os
import re
import sys
import time

import numpy

import gpu

TYPES = {"IntArray": numpy.int32, "FloatArray": numpy.float32, "ShortArray": numpy.int16}
HEADER = 16


def kernels(printed):
    """Of each layer the texts of its kernels, in their order, as (task, kernel's name, text)."""
    layers, text, name = {}, None, None
    for line in printed.splitlines():
        layer = re.match(r"// LAYER (\S+)(.*)", line)
        if layer:
            name = layer[1]
            layers.setdefault(name, ([], layer[2].split()))
        elif re.match(r"__kernel void (\w+)\(", line):
            text = []
        if text is not None:
            text.append(line)
            if line.startswith("}"):
                kernel = re.match(r"__kernel void (\w+)\(", text[0])[1]
                layers[name][0].append((kernel, "\n".join(text) + "\n"))
                text = None
    layers.pop("none", None)
    for layer, (texts, tasks) in layers.items():
        texts[:] = [(kernel, text) for kernel, text in texts if not kernel.startswith("probe")]
        if len(texts) != len(tasks):
            raise ValueError(f"{layer}: {len(texts)} kernels were printed for {tasks}")
    return {layer: [(task, *text) for task, text in zip(tasks, texts)] for layer, (texts, tasks) in layers.items()}


def ulps(a, b):
    """How many floats lie between two."""
    def ordered(x):
        bits = x.view(numpy.int32).astype(numpy.int64)
        return numpy.where(bits < 0, -(bits & 0x7FFFFFFF), bits)

    return numpy.abs(ordered(a) - ordered(b))


class Case:
    """A task and its arguments before and after."""

    def __init__(self, folder):
        self.folder = folder
        with open(os.path.join(folder, "case")) as lines:
            head, *arguments = [line.split() for line in lines]
        self.group, self.x, self.y = map(int, head[1:])
        self.arguments = arguments

    def run(self, emu, program, kernel):
        arrays, given = {}, [0, 0, 0, 0]  # TornadoVM's own, which these kernels don't look at
        for kind, type_, value in self.arguments:
            if kind == "scalar":
                given.append(float(value) if type_ == "Float" else int(value))
            else:
                if value not in arrays:
                    content = numpy.fromfile(os.path.join(self.folder, value + ".before"), numpy.uint8)
                    # Whoever reads or writes behind an array is seen by what is there.
                    arrays[value] = kind, type_, numpy.concatenate([content, numpy.full(4096, 0xA5, numpy.uint8)])
                given.append(arrays[value][2])
        counts = program.run(emu, kernel, (self.x, self.y), self.group, given)
        wrong, floats, worst, total = [], 0, 0.0, 0
        for name, (kind, type_, whole) in arrays.items():
            got, behind = whole[HEADER:-4096], whole[-4096:]
            ending = ".after" if kind == "out" else ".before"
            expected = numpy.fromfile(os.path.join(self.folder, name + ending), numpy.uint8)[HEADER:]
            if (behind != 0xA5).any():
                wrong.append(f"{name}: written behind its end")
            if kind == "out":
                got, expected = got.view(TYPES[type_]), expected.view(TYPES[type_])
            if kind == "out" and type_ == "FloatArray":
                apart = ulps(got, expected)
                same = (got == expected) | (numpy.isnan(got) & numpy.isnan(expected))
                apart[same] = 0
                with numpy.errstate(all="ignore"):
                    error = numpy.abs(got.astype(float) - expected) / numpy.abs(expected[numpy.isfinite(expected)]).max(
                        initial=1e-30
                    )
                floats = max(floats, int(apart.max(initial=0)))
                worst = max(worst, float(numpy.nanmax(numpy.where(same, 0, error), initial=0)))
                # A sum of many products may be off by more than one of its own, if terms cancel.
                bad = ~same & (apart > 1) & ~(error < 4e-7)
                total += got.size
            else:
                bad = got != expected
            if bad.any():
                at = numpy.flatnonzero(bad)
                first = f"[{at[0]}] {got[at[0]]} != {expected[at[0]]}"
                wrong.append(f"{name}: {at.size} of {got.size} differ, first {first}")
        return counts, wrong, floats, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tinygrad", help="a checkout of it")
    parser.add_argument("clang", help="one that knows the targets")
    parser.add_argument("libraries", help="folder of ROCm's device libraries, *.bc")
    parser.add_argument("printed", help="what EmulatorCases kernels printed")
    parser.add_argument("cases", help="what EmulatorCases cases wrote")
    parser.add_argument("--targets", default="gfx1100,gfx942")
    parser.add_argument("--only", default="", help="layers and tasks, LAYER/TASK, that match")
    parser.add_argument("--out", help="a table goes there")
    args = parser.parse_args()
    emu = gpu.emulator(args.tinygrad, args.clang)
    compiler = gpu.Compiler(args.clang, args.libraries)
    with open(args.printed) as printed:
        layers = kernels(printed.read())
    failed, rows, programs = 0, [], {}
    for layer, tasks in layers.items():
        for number, (task, kernel, text) in enumerate(tasks):
            name = f"{layer}/{task}"
            if not re.search(args.only, name):
                continue
            case = Case(os.path.join(args.cases, layer, f"{number:02d}-{task}"))
            cells = []
            for target in args.targets.split(","):
                start = time.time()
                try:
                    if (target, text) not in programs:
                        source = "#pragma OPENCL EXTENSION cl_khr_fp64 : enable\n" + text
                        programs[target, text] = compiler.program(source, target)
                    counts, wrong, apart, worst = case.run(emu, programs[target, text], kernel)
                    result = "; ".join(wrong) if wrong else "equal" if apart == 0 else f"{apart} ulp, {worst:.0e}"
                    cells.append(f"{sum(counts.values())}: {'**' + result + '**' if wrong else result}")
                    failed += bool(wrong)
                except Exception as e:  # of the emulator's, for which there is no type
                    cells.append(f"**{type(e).__name__}: {str(e).splitlines()[0][:200]}**")
                    failed += 1
                print(f"{name} {kernel} {target} {cells[-1]} ({time.time() - start:.1f} s)", flush=True)
            rows.append(f"| {layer} | {task} | {kernel} | {' | '.join(cells)} |")
    targets = args.targets.split(",")
    head = [f"| layer | task | kernel | {' | '.join(targets)} |", "| --- | --- | --- |" + " --- |" * len(targets)]
    if args.out:
        with open(args.out, "w") as out:
            out.write(f"{compiler.version()}\n\n" + "\n".join(head + rows) + "\n")
    print(f"{len(rows) * len(targets)} runs, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
