#!/usr/bin/env python3
"""Runs the matrix-core kernel, amd-gemm.cl, in the emulator and compares with the product's definition: sums of int8 to
the bit, and what is added up in float to a few ulp of the largest result. README.md has how."""

import argparse
import os
import re
import sys
import time

import numpy

import gpu

SOURCE = "../../src/core/src/main/resources/org/tornadomoe/tornado/kernels/amd-gemm.cl"
STREAM, FEW, TILE = 4, 16, 128
HEADER = 16


def array(values):
    """With TornadoVM's header in front, and behind it what must not be written."""
    content = numpy.ascontiguousarray(values).view(numpy.uint8).ravel()
    return numpy.concatenate([numpy.zeros(HEADER, numpy.uint8), content, numpy.full(4096, 0xA5, numpy.uint8)])


def packed(weights, halves):
    """[E, rows, cols] as AmdWeights has them, and the chunks of 64 k."""
    experts, rows, cols = weights.shape
    tiles, chunks = -(-rows // 16), -(-cols // 64)
    padded = numpy.zeros((experts, tiles * 16, chunks * 64), numpy.int8)
    padded[:, :rows, :cols] = weights
    if halves:
        # [E, tile, row, chunk, n, piece, 4] to [E, tile, chunk, piece, row, n, 4]
        order = padded.reshape(experts, tiles, 16, chunks, 4, 4, 4).transpose(0, 1, 3, 5, 2, 4, 6)
        return numpy.ascontiguousarray(order).view(numpy.uint8) ^ 0x80, chunks
    # [E, tile, row, chunk, piece, 16] to [E, tile, chunk, piece, row, 16]
    return padded.reshape(experts, tiles, 16, chunks, 4, 16).transpose(0, 1, 3, 4, 2, 5), chunks


def order_of_halves(architecture):
    """Which k of a chunk each half of a packed row is."""
    p, t = numpy.divmod(numpy.arange(64), 8)
    return {
        "rdna3": 8 * p + t,
        "rdna4": p // 2 * 16 + t // 4 * 8 + p % 2 * 4 + t % 4,
        "cdna": p // 4 * 32 + t // 4 * 16 + p % 4 * 4 + t % 4,
    }[architecture]


def as_halves(rows, chunks, architecture):
    """Rows of floats as the kernel packs them, and what the first halves of it stand for."""
    padded = numpy.zeros((len(rows), chunks * 64), numpy.float32)
    padded[:, : rows.shape[1]] = rows
    greatest = numpy.abs(padded).max(1).view(numpy.uint32)
    exponent = numpy.maximum(greatest >> 23, 27).astype(int) - 127
    inverse = numpy.ldexp(numpy.float32(1), 14 - exponent)[:, None]
    high = (padded * inverse).astype(numpy.float16)
    low = (padded * inverse - high.astype(numpy.float32)).astype(numpy.float16)
    order = (numpy.arange(chunks * 64).reshape(chunks, 64)[:, order_of_halves(architecture)]).ravel()
    scale = numpy.zeros((len(rows), 4), numpy.float32)
    scale[:, :1] = 1 / inverse
    parts = [numpy.ascontiguousarray(part[:, order]) for part in (high, low)] + [scale]
    stand_for = (high.astype(float) / inverse)[:, : rows.shape[1]]
    return numpy.concatenate([part.view(numpy.uint8) for part in parts], 1), stand_for


class Shape:
    """A product: of how many pairs each expert has, and in which form."""

    def __init__(self, name, rows, cols, pairs_of_expert, block, group=0, rows_per_scale=1, top_k=2, **more):
        self.name, self.rows, self.cols, self.block = name, rows, cols, block
        self.pairs_of_expert, self.top_k = pairs_of_expert, top_k
        self.group, self.rows_per_scale = group, rows_per_scale
        self.biased, self.weighted, self.absent = more.get("biased", 0), more.get("weighted", 0), more.get("absent")
        self.halves, self.zeros = more.get("halves", 0), more.get("zeros", 0)

    def options(self):
        step = 64 if self.group % 64 == 0 or not self.halves else 32 if self.group % 32 == 0 else 16
        facts = {"HALVES": self.halves, "GROUPED": int(self.group > 0), "STEP": step, "ZEROS": self.zeros}
        return [f"-D{name}={value}" for name, value in facts.items()]

    def factor(self, random, tokens):
        """[tokens, cols], int8 or floats of all sizes."""
        if not self.halves:
            return random.integers(-128, 128, (tokens, self.cols), numpy.int8)
        sizes = numpy.exp(random.uniform(-20, 20, (tokens, 1)))
        return (random.standard_normal((tokens, self.cols)) * sizes).astype(numpy.float32)

    def pack(self, emu, program, a, chunks):
        """Rows as the kernel packs them, and what is wrong with these."""
        i32 = lambda values: array(numpy.array(values, numpy.int32))  # noqa: E731
        tokens = len(a)
        out = array(numpy.full((tokens, 256 * chunks + 16), 0x5A, numpy.uint8))
        keys, weights = numpy.arange(tokens, dtype=numpy.int32), numpy.full(tokens, 0.37, numpy.float32)
        keys[1::3] = -1
        found = None
        for keyed, weighted in ((1, 0), (0, 1), (0, 0)):
            sizes = [1, 1, 1, chunks, weighted, 0, 0, 64, 1, 1, self.cols, keyed]
            nothing = i32([0])
            arguments = [*(0, 0, 0, 0), i32([tokens]), i32(sizes), i32(keys), *[nothing] * 3]
            arguments += [array(a), *[nothing] * 3, array(weights), out]
            program.run(emu, "amdGemm", (tokens + 1, 1), 256, arguments)
            rows = a * weights[:, None] if weighted else a
            expected, _ = as_halves(rows, chunks, gpu.ARCHITECTURE[program.target])
            got = out[HEADER:-4096].reshape(tokens, -1)
            expected[(keys < 0) & (keyed > 0)] = 0x5A
            if (got != expected).any() or (out[-4096:] != 0xA5).any():
                places = numpy.argwhere(got != expected)[:3].tolist()
                found = f"packed wrong, keyed {keyed}, weighted {weighted}: {places}"
        return out, found

    def run(self, emu, program):
        random = numpy.random.default_rng(1)
        experts, pairs = len(self.pairs_of_expert), sum(self.pairs_of_expert)
        tokens = -(-pairs // self.top_k)
        a = self.factor(random, tokens)
        weights = random.integers(-128, 128, (experts, self.rows, self.cols), numpy.int8)
        b, chunks = packed(weights, self.halves)
        b = numpy.ascontiguousarray(b).ravel().view(numpy.uint8)
        groups = -(-self.cols // self.group) if self.group else 1
        scale_rows = -(-self.rows // self.rows_per_scale)
        f32 = lambda *shape: random.uniform(0.001, 0.01, shape).astype(numpy.float32)  # noqa: E731
        a_scales, b_scales = f32(tokens, groups), f32(experts, groups, scale_rows)
        zeros = numpy.zeros((experts, groups, self.rows), numpy.float32)
        if self.zeros:
            zeros[:] = random.integers(-128, 128, zeros.shape)
        rounded, found = a, None
        if self.halves:
            packed_a, found = self.pack(emu, program, a, chunks)
            if self.block == TILE:
                rounded = as_halves(a, chunks, gpu.ARCHITECTURE[program.target])[1]
        else:
            packed_a = numpy.zeros((tokens, chunks * 64), numpy.int8)
            packed_a[:, : self.cols] = a
            packed_a = array(packed_a)
        bias = f32(experts, self.rows) if self.biased else f32(1)
        total = tokens * self.top_k  # of which some have no expert here
        ids, of_block, owner = [], [], {}
        order = random.permutation(total)[:pairs]
        for expert, count in enumerate(self.pairs_of_expert):
            mine, order = sorted(order[:count]), order[count:]
            owner.update({pair: expert for pair in mine})
            blocks = -(-count // self.block)
            ids += mine + [total] * (blocks * self.block - count)
            of_block += [-1 if expert == self.absent else expert] * blocks
        out = array(numpy.full((total, self.rows), -77, numpy.float32))
        router = f32(total)
        lead = 28
        sizes = [1, self.top_k, self.rows, chunks, self.weighted, self.biased, lead]
        sizes += [self.group or 64 * chunks, self.rows_per_scale, groups, 0, 0]
        i32 = lambda values: array(numpy.array(values, numpy.int32))  # noqa: E731
        arguments = [
            *(0, 0, 0, 0),
            i32([total, self.block]),
            i32(sizes),
            i32(ids),
            i32(of_block),
            i32([len(ids)]),
            packed_a,
            array(zeros if self.halves else a_scales),
            array(numpy.concatenate([numpy.zeros(4 * lead, numpy.uint8), b])),
            array(b_scales),
            array(bias),
            array(router),
            out,
        ]
        grid = -(-self.rows // (TILE if self.block == TILE else 16)), len(of_block) + 1  # one more than there are
        counts = program.run(emu, "amdGemm", grid, 256, arguments)
        got = out[HEADER:-4096].view(numpy.float32).reshape(total, self.rows)
        expected = numpy.full((total, self.rows), -77, numpy.float32)
        rounding = []
        for pair, expert in owner.items():
            token = pair // self.top_k
            value = numpy.zeros(self.rows, numpy.float32)
            if expert != self.absent and self.halves:
                of_k = numpy.arange(self.cols) // (self.group or self.cols)
                zero, scale = (part[expert].T.astype(float)[:, of_k] for part in (zeros, b_scales))
                exact = (weights[expert] - zero) * scale
                value = (exact @ rounded[token]).astype(numpy.float32)
                defined = exact @ a[token].astype(float)
                rounding.append(numpy.linalg.norm(value - defined) / numpy.linalg.norm(defined))
            elif expert != self.absent:
                products = weights[expert].astype(numpy.int32) * a[token].astype(numpy.int32)
                if self.group:
                    exact = numpy.zeros(self.rows)
                    for g in range(groups):
                        sums = products[:, g * self.group : (g + 1) * self.group].sum(1)
                        scale = b_scales[expert, g, numpy.arange(self.rows) // self.rows_per_scale].astype(float)
                        exact += sums * float(a_scales[token, g]) * scale
                    value = exact.astype(numpy.float32)
                else:
                    value = products.sum(1).astype(numpy.float32) * a_scales[token, 0] * b_scales[expert, 0]
            if expert != self.absent and self.biased:
                value = value + bias[expert]
            expected[pair] = value * router[pair] if self.weighted else value
        if found:
            return counts, found
        if (out[-4096:] != 0xA5).any():
            return counts, "written behind its end"
        untouched = expected == -77
        if (got[untouched] != -77).any():
            return counts, "written where no pair is"
        if self.group or self.halves:
            largest = numpy.abs(expected).max(1, keepdims=True, where=~untouched, initial=1e-30)
            error = (numpy.abs(got - expected) / largest)[~untouched].max()
            result = f"{error:.0e}" if error < 1e-6 else f"wrong by {error:.0e}"
            return counts, result + (f", halves {max(rounding):.0e}" if rounding and self.block == TILE else "")
        wrong = numpy.argwhere(got != expected)
        if wrong.size:
            p, n = wrong[0]
            return counts, f"wrong in {len(wrong)} of {got.size}, first [{p}, {n}] {got[p, n]} != {expected[p, n]}"
        return counts, "equal"


SHAPES = [
    Shape("few, edges", 133, 130, [5, 0, 17, 1], FEW, weighted=1),
    Shape("few, bias", 48, 576, [16, 3], FEW, biased=1, top_k=1),
    Shape("few, an expert elsewhere", 32, 64, [4, 5], FEW, absent=1),
    Shape("tile, edges", 133, 130, [131, 0, 3], TILE, weighted=1),
    Shape("tile, bias", 300, 200, [128, 40], TILE, biased=1, top_k=1),
    Shape("tile, an expert elsewhere", 128, 64, [20, 5], TILE, absent=1),
    Shape("few, blocks of 128", 133, 330, [5, 17], FEW, group=128, rows_per_scale=128, weighted=1),
    Shape("few, blocks of 64 and 8", 40, 192, [5], FEW, group=64, rows_per_scale=8),
    Shape("tile, blocks of 128", 133, 330, [130, 7], TILE, group=128, rows_per_scale=128, weighted=1),
    Shape("tile, blocks of 64 and 8", 160, 192, [40], TILE, group=64, rows_per_scale=8, biased=1),
    Shape("stream, edges", 133, 330, [4, 0, 1, 5], STREAM, weighted=1),
    Shape("stream, bias", 48, 576, [1, 1, 1], STREAM, biased=1, top_k=1),
    Shape("stream, an expert elsewhere", 32, 64, [2, 3], STREAM, absent=1),
    Shape("stream, blocks of 128", 133, 330, [3, 1], STREAM, group=128, rows_per_scale=128, weighted=1),
    Shape("stream, blocks of 64 and 8", 40, 192, [4, 1], STREAM, group=64, rows_per_scale=8),
    Shape("halves, few, edges", 133, 130, [5, 0, 17, 1], FEW, halves=1, weighted=1),
    Shape("halves, few, bias", 48, 576, [16, 3], FEW, halves=1, biased=1, top_k=1),
    Shape("halves, few, an expert elsewhere", 32, 64, [4, 5], FEW, halves=1, absent=1),
    Shape("halves, few, groups of 16, zeros", 133, 120, [5, 17], FEW, halves=1, group=16, zeros=1),
    Shape("halves, few, groups of 96", 48, 250, [5], FEW, halves=1, group=96, weighted=1),
    Shape("halves, few, groups of 128, zeros", 37, 330, [5], FEW, halves=1, group=128, zeros=1),
    Shape("halves, tile, edges", 133, 130, [131, 0, 3], TILE, halves=1, weighted=1),
    Shape("halves, tile, bias", 300, 200, [128, 40], TILE, halves=1, biased=1, top_k=1),
    Shape("halves, tile, an expert elsewhere", 128, 64, [20, 5], TILE, halves=1, absent=1),
    Shape("halves, tile, groups of 16, zeros", 133, 120, [130, 7], TILE, halves=1, group=16, zeros=1),
    Shape("halves, tile, groups of 96", 160, 250, [40], TILE, halves=1, group=96, weighted=1),
    Shape("halves, tile, groups of 128, zeros", 37, 330, [40], TILE, halves=1, group=128, zeros=1, biased=1),
]


def programs(compiler, text, target):
    """Of a shape the program that is compiled for it, once."""
    made = {}

    def of(shape):
        options = shape.options()
        if str(options) not in made:
            made[str(options)] = compiler.program(text, target, *options)
        return made[str(options)]

    return of


def instructions(emu, target, program_of):
    """What a wave takes for a chunk of 64 k of a whole block of pairs: the difference that one more chunk makes."""
    lines = []
    waves = 256 // gpu.WAVE[gpu.ARCHITECTURE[target]]
    for name, block, pairs, group, more in (
        ("tile", TILE, 128, 0, {}),
        ("tile, blocks of 128", TILE, 128, 128, {"rows_per_scale": 128}),
        ("few", FEW, 16, 0, {}),
        ("stream, one pair", STREAM, 1, 0, {}),
        ("stream, four pairs", STREAM, 4, 0, {}),
        ("halves, tile", TILE, 128, 0, {"halves": 1}),
        ("halves, tile, groups of 128", TILE, 128, 128, {"halves": 1}),
        ("halves, tile, groups of 32", TILE, 128, 32, {"halves": 1}),
        ("halves, tile, groups of 16, zeros", TILE, 128, 16, {"halves": 1, "zeros": 1}),
        ("halves, few", FEW, 16, 0, {"halves": 1}),
        ("halves, few, groups of 32", FEW, 16, 32, {"halves": 1}),
    ):
        # Loops are unrolled by 4 at most; a group's waves take chunks in turn unless it has a tile.
        step = max(1, group // 64) if block == TILE else 4 * waves
        of_k = []
        for chunks in (4, 4 + step) if block == TILE else (2 * step, 3 * step):
            rows = TILE if block == TILE else 16
            shape = Shape(name, rows, 64 * chunks, [pairs], block, group=group, top_k=1, **more)
            of_k.append(shape.run(emu, program_of(shape))[0])
        chunks_of_wave = step if block == TILE else step / waves
        kinds = {"matrix": 0, "LDS": 0, "global": 0, "vector": 0, "scalar and waits": 0}
        for key in of_k[1]:
            more = (of_k[1][key] - of_k[0].get(key, 0)) / waves / chunks_of_wave
            kind = (
                "matrix"
                if "WMMA" in key or "MFMA" in key
                else "LDS"
                if key.startswith("DS_")
                else "global"
                if "GLOBAL" in key
                else "vector"
                if key.startswith("V_")
                else "scalar and waits"
            )
            kinds[kind] += more
        lines.append(f"| {name} | " + " | ".join(f"{kinds[kind]:.1f}" for kind in kinds) + " |")
    return ["| a wave, a chunk | " + " | ".join(kinds) + " |", "| --- |" + " --- |" * len(kinds), *lines]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tinygrad", help="a checkout of it")
    parser.add_argument("clang", help="one that knows the targets")
    parser.add_argument("libraries", help="folder of ROCm's device libraries, *.bc")
    parser.add_argument("--targets", default="gfx1100,gfx1201,gfx942")
    parser.add_argument("--only", default="", help="shapes whose names have that in them")
    parser.add_argument("--count", action="store_true", help="instructions of the inner loops instead")
    parser.add_argument("--out", help="a table goes there")
    args = parser.parse_args()
    emu = gpu.emulator(args.tinygrad, args.clang)
    compiler = gpu.Compiler(args.clang, args.libraries)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), SOURCE)) as source:
        text = source.read()
    failed, targets = 0, args.targets.split(",")
    cells = {shape.name: [] for shape in SHAPES if args.only in shape.name}
    for target in targets:
        program_of = programs(compiler, text, target)
        if args.count:
            print(target, *instructions(emu, target, program_of), sep="\n", flush=True)
            continue
        for shape in SHAPES:
            if shape.name not in cells:
                continue
            start = time.time()
            try:
                counts, result = shape.run(emu, program_of(shape))
                matrix = sum(count for name, count in counts.items() if re.search("WMMA|MFMA|DOT4", name))
                failed += "wr" in result
                cells[shape.name].append(f"{result} ({sum(counts.values())} / {matrix})")
            except Exception as e:  # of the emulator's, for which there is no type
                failed += 1
                cells[shape.name].append(f"{type(e).__name__}: {str(e).splitlines()[0][:200]}")
            print(f"{target} {shape.name}: {cells[shape.name][-1]} in {time.time() - start:.1f} s", flush=True)
    table = [f"| product | {' | '.join(targets)} |", "| --- |" + " --- |" * len(targets)]
    table += [f"| {name} | {' | '.join(row)} |" for name, row in cells.items()]
    if args.out:
        with open(args.out, "w") as out:
            out.write(f"{compiler.version()}\n\n" + "\n".join(table) + "\n")
    print(f"{len(cells) * len(targets)} runs, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
