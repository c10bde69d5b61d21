#!/usr/bin/env python3
"""Runs the matrix-core kernel, amd-gemm.cl, in the emulator and compares with the product's definition: sums to the
bit, and what is scaled and added up group by group to a few ulp. README.md has how."""

import argparse
import os
import sys
import time

import numpy

import gpu

SOURCE = "../../src/core/src/main/resources/org/tornadomoe/tornado/kernels/amd-gemm.cl"
FEW, TILE = 16, 128
HEADER = 16


def array(values):
    """With TornadoVM's header in front, and behind it what must not be written."""
    content = numpy.ascontiguousarray(values).view(numpy.uint8).ravel()
    return numpy.concatenate([numpy.zeros(HEADER, numpy.uint8), content, numpy.full(4096, 0xA5, numpy.uint8)])


def packed(weights):
    """[E, rows, cols] as AmdWeights has them, and the chunks of 64 k."""
    experts, rows, cols = weights.shape
    tiles, chunks = -(-rows // 16), -(-cols // 64)
    padded = numpy.zeros((experts, tiles * 16, chunks * 64), numpy.int8)
    padded[:, :rows, :cols] = weights
    # [E, tile, row, chunk, piece, 16] to [E, tile, chunk, piece, row, 16]
    return padded.reshape(experts, tiles, 16, chunks, 4, 16).transpose(0, 1, 3, 4, 2, 5), chunks


class Shape:
    """A product: of how many pairs each expert has, and in which form."""

    def __init__(self, name, rows, cols, pairs_of_expert, block, group=0, rows_per_scale=1, top_k=2, **more):
        self.name, self.rows, self.cols, self.block = name, rows, cols, block
        self.pairs_of_expert, self.top_k = pairs_of_expert, top_k
        self.group, self.rows_per_scale = group, rows_per_scale
        self.biased, self.weighted, self.absent = more.get("biased", 0), more.get("weighted", 0), more.get("absent")

    def run(self, emu, program):
        random = numpy.random.default_rng(1)
        experts, pairs = len(self.pairs_of_expert), sum(self.pairs_of_expert)
        tokens = -(-pairs // self.top_k)
        a = random.integers(-128, 128, (tokens, self.cols), numpy.int8)
        weights = random.integers(-128, 128, (experts, self.rows, self.cols), numpy.int8)
        b, chunks = packed(weights)
        padded_a = numpy.zeros((tokens, chunks * 64), numpy.int8)
        padded_a[:, : self.cols] = a
        groups = -(-chunks * 64 // self.group) if self.group else 1
        scale_rows = -(-self.rows // self.rows_per_scale)
        f32 = lambda *shape: random.uniform(0.001, 0.01, shape).astype(numpy.float32)  # noqa: E731
        a_scales, b_scales = f32(tokens, groups), f32(experts, groups, scale_rows)
        bias = f32(experts, self.rows) if self.biased else f32(1)
        router = f32(pairs)
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
        sizes += [self.group // 64, self.rows_per_scale]
        i32 = lambda values: array(numpy.array(values, numpy.int32))  # noqa: E731
        arguments = [
            *(0, 0, 0, 0),
            i32([total, self.block]),
            i32(sizes),
            i32(ids),
            i32(of_block),
            i32([len(ids)]),
            array(padded_a),
            array(a_scales),
            array(numpy.concatenate([numpy.zeros(4 * lead, numpy.int8), b.ravel()])),
            array(b_scales),
            array(bias),
            array(router),
            out,
        ]
        grid = -(-self.rows // (16 if self.block == FEW else TILE)), len(of_block) + 1  # one more than there are
        counts = program.run(emu, "amdGemm", grid, 256, arguments)
        got = out[HEADER:-4096].view(numpy.float32).reshape(total, self.rows)
        expected = numpy.full((total, self.rows), -77, numpy.float32)
        for pair, expert in owner.items():
            token = pair // self.top_k
            value = numpy.zeros(self.rows, numpy.float32)
            if expert != self.absent:
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
                if self.biased:
                    value = value + bias[expert]
            expected[pair] = value * router[pair] if self.weighted else value
        if (out[-4096:] != 0xA5).any():
            return counts, "written behind its end"
        if self.group:
            error = numpy.abs(got - expected).max() / numpy.abs(expected[expected != -77]).max()
            return counts, f"{error:.0e}" if error < 1e-6 else f"wrong by {error:.0e}"
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
]


def instructions(emu, programs):
    """What a wave takes for a chunk of 64 k of a whole block of pairs: the difference that one more chunk makes."""
    lines = []
    for name, block, rows, group, step in (
        ("tile", TILE, 128, 0, 1),
        ("tile, blocks of 128", TILE, 128, 128, 2),
        ("few", FEW, 16, 0, 16),
    ):
        of_k = []
        for chunks in (32, 32 + step) if block == FEW else (4, 4 + step):
            shape = Shape(name, rows, 64 * chunks, [block], block, group=group, rows_per_scale=128, top_k=1)
            of_k.append(shape.run(emu, programs[int(group > 0)])[0])
        waves = 256 // gpu.WAVE[gpu.ARCHITECTURE[programs[0].target]]
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
        programs = {grouped: compiler.program(text, target, f"-DGROUPED={grouped}") for grouped in (0, 1)}
        if args.count:
            print(target, *instructions(emu, programs), sep="\n", flush=True)
            continue
        for shape in SHAPES:
            if shape.name not in cells:
                continue
            start = time.time()
            try:
                counts, result = shape.run(emu, programs[int(shape.group > 0)])
                matrix = sum(count for name, count in counts.items() if "WMMA" in name or "MFMA" in name)
                failed += "w" in result
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
