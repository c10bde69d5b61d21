package org.tornadomoe.cli;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.CaseFile;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.kernel.StageValues;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.reference.Numerics;

/**
 * Compares a kernel class with a case file, stage by stage: each stage gets its input from the file. Then it runs once
 * end to end, with each stage's input from the stage before.
 *
 * <p>The limits follow from the producer's arithmetic. It rounds both GEMMs to bf16, which allows one unit in the last
 * place. A value on a rounding boundary may quantise to either side. End to end these roundings add up to 1.5e-2 (W8A8)
 * or 6e-3 (W8A16).
 */
final class CaseCheck {
    /**
     * The distance from a rounding boundary, in ulps, within which dividing and multiplying may give different sides.
     */
    private static final double BOUNDARY_ULPS = 3;

    private static final double SCALE_ERROR = 1e-6;
    private static final double WEIGHT_ERROR = 1e-5;
    private static final double SUM_ERROR = 1e-6;

    /**
     * Routing, two quantisers, two GEMMs, the activation, the sum: after this many rounds each stage has seen the
     * output of the stage before it.
     */
    private static final int STAGES = 7;

    private CaseCheck() {}

    /** The checks, and the numbers of the end-to-end pass that a report names separately. */
    record Result(List<Check> checks, double relativeL2, double maxAbs, int expertIdMismatches) {}

    /** The largest relative L2 error from end to end. */
    static double tolerance(Int8Scheme scheme) {
        return scheme.quantizesActivations() ? 1.5e-2 : 6e-3;
    }

    static Result check(CaseFile file, Selection selection) {
        StageValues given = values(file);
        StageValues made = stages(file, selection, given);
        List<Check> checks = new ArrayList<>();
        int mismatches = differing(made.topkIds(), given.topkIds());
        checks.add(new Check("routing", "expert ids that differ", mismatches, 0));
        checks.add(new Check(
                "routing",
                "weights, largest difference",
                maxAbs(made.topkWeights(), given.topkWeights()),
                WEIGHT_ERROR));
        checks.add(new Check("alignment", "places and blocks that differ", misplaced(made, given), 0));
        addQuantized(
                checks, "quantise 1", file, file.hiddenStates(), file.tokens(), file.a1(), made.a1(), made.a1Scales());
        checks.add(new Check("gemm 1", "bf16 units in the last place", bf16Units(made.gemm1(), given.gemm1()), 1));
        checks.add(new Check("activation", "bf16 units in the last place", bf16Units(made.act(), given.act()), 1));
        addQuantized(
                checks, "quantise 2", file, file.act(), file.topkIds().length, file.a2(), made.a2(), made.a2Scales());
        checks.add(new Check("gemm 2", "bf16 units in the last place", bf16Units(made.gemm2(), given.gemm2()), 1));
        checks.add(new Check("combine", "relative L2 error", relativeL2(made.output(), given.output()), SUM_ERROR));
        float[] output = endToEnd(file, selection, made).output();
        double error = relativeL2(output, given.output());
        double maxAbs = maxAbs(output, given.output());
        checks.add(new Check("end to end", "relative L2 error", error, tolerance(file.scheme())));
        checks.add(new Check("end to end", "largest difference", maxAbs, Double.POSITIVE_INFINITY));
        return new Result(checks, error, maxAbs, mismatches);
    }

    private static StageValues values(CaseFile file) {
        CaseFile.Quantized none = new CaseFile.Quantized(new byte[0], new float[0]);
        CaseFile.Quantized a1 = file.a1() == null ? none : file.a1();
        CaseFile.Quantized a2 = file.a2() == null ? none : file.a2();
        return new StageValues(
                file.routerLogits(),
                file.topkIds(),
                file.topkWeights(),
                CaseFile.BLOCK_SIZE,
                Arrays.copyOf(file.sortedTokenIds(), file.numTokensPostPadded()),
                Arrays.copyOf(file.expertIds(), file.numTokensPostPadded() / CaseFile.BLOCK_SIZE),
                a1.values(),
                a1.scales(),
                file.gemm1(),
                file.act(),
                a2.values(),
                a2.scales(),
                file.gemm2(),
                file.output());
    }

    private static StageValues stages(CaseFile file, Selection selection, StageValues given) {
        if (!file.weightOnInput()) {
            return made(file, selection, given);
        }
        // The class leaves GEMM 2's output unweighted. GEMM 1's output is weighted here, because no layer of ours does
        // it.
        float[] weights = given.topkWeights();
        float[] ones = new float[weights.length];
        Arrays.fill(ones, 1);
        StageValues made = made(file, selection, with(given, ones, given.gemm1()));
        float[] gemm1 = made.gemm1().clone();
        for (int i = 0; i < gemm1.length; i++) {
            gemm1[i] *= weights[i / (gemm1.length / weights.length)];
        }
        return with(made, made.topkWeights(), gemm1);
    }

    private static StageValues made(CaseFile file, Selection selection, StageValues given) {
        return selection
                .experts()
                .stages(selection.config(), file.experts(), file.hiddenStates(), file.tokens(), given);
    }

    private static StageValues with(StageValues values, float[] topkWeights, float[] gemm1) {
        return new StageValues(
                values.logits(),
                values.topkIds(),
                topkWeights,
                values.blockSize(),
                values.sortedIds(),
                values.expertIds(),
                values.a1(),
                values.a1Scales(),
                gemm1,
                values.act(),
                values.a2(),
                values.a2Scales(),
                values.gemm2(),
                values.output());
    }

    /** Passes the stages their own outputs as inputs, once for each stage, or until nothing changes. */
    private static StageValues endToEnd(CaseFile file, Selection selection, StageValues made) {
        StageValues before = made;
        StageValues after = stages(file, selection, before);
        for (int stage = 2; stage < STAGES && !same(before, after); stage++) {
            before = after;
            after = stages(file, selection, before);
        }
        return after;
    }

    private static boolean same(StageValues a, StageValues b) {
        return Arrays.equals(a.topkIds(), b.topkIds())
                && Arrays.equals(a.topkWeights(), b.topkWeights())
                && Arrays.equals(a.a1(), b.a1())
                && Arrays.equals(a.a1Scales(), b.a1Scales())
                && Arrays.equals(a.gemm1(), b.gemm1())
                && Arrays.equals(a.act(), b.act())
                && Arrays.equals(a.a2(), b.a2())
                && Arrays.equals(a.a2Scales(), b.a2Scales())
                && Arrays.equals(a.gemm2(), b.gemm2())
                && Arrays.equals(a.output(), b.output());
    }

    /** @param x the values that were quantised, [rows, …] */
    private static void addQuantized(
            List<Check> checks,
            String stage,
            CaseFile file,
            float[] x,
            int rows,
            CaseFile.@Nullable Quantized given,
            byte[] values,
            float[] scales) {
        if (given == null) {
            return;
        }
        int width = x.length / rows;
        int groups = given.scales().length / rows;
        // Values in blocks are truncated, so the boundary is the larger of two neighbours.
        boolean truncated = file.scheme() == Int8Scheme.W8A8_BLOCK
                && !file.experts().quantization().roundToNearest();
        int differing = 0;
        int offBoundary = 0;
        int largest = 0;
        double scaleError = 0;
        for (int i = 0; i < values.length; i++) {
            int made = values[i];
            int expected = given.values()[i];
            if (made != expected) {
                double exact = x[i] / (double) given.scales()[i / width * groups + i % width * groups / width];
                float boundary =
                        truncated ? (Math.abs(made) > Math.abs(expected) ? made : expected) : (made + expected) / 2f;
                differing++;
                offBoundary += Math.abs(exact - boundary) <= BOUNDARY_ULPS * Math.ulp(boundary) ? 0 : 1;
                largest = Math.max(largest, Math.abs(made - expected));
            }
        }
        for (int i = 0; i < scales.length; i++) {
            scaleError = Math.max(scaleError, Math.abs(scales[i] / (double) given.scales()[i] - 1));
        }
        checks.add(new Check(stage, "int8 values that differ", differing, Double.POSITIVE_INFINITY));
        checks.add(new Check(stage, "of them off a rounding boundary", offBoundary, 0));
        checks.add(new Check(stage, "largest difference", largest, 1));
        checks.add(new Check(stage, "scales, relative error", scaleError, SCALE_ERROR));
    }

    private static int misplaced(StageValues made, StageValues given) {
        if (made.sortedIds().length != given.sortedIds().length) {
            return Math.abs(made.sortedIds().length - given.sortedIds().length);
        }
        return differing(made.sortedIds(), given.sortedIds()) + differing(made.expertIds(), given.expertIds());
    }

    static int differing(int[] actual, int[] expected) {
        int differing = 0;
        for (int i = 0; i < expected.length; i++) {
            differing += actual[i] == expected[i] ? 0 : 1;
        }
        return differing;
    }

    /** NaN if a value is NaN. */
    static double maxAbs(float[] actual, float[] expected) {
        double largest = 0;
        for (int i = 0; i < expected.length; i++) {
            largest = Math.max(largest, Math.abs((double) actual[i] - expected[i]));
        }
        return largest;
    }

    /**
     * The largest difference, in units of the expected value's last bf16 place (8 significant bits). Where terms
     * cancel, the rounding of floats as large as the terms remains, so a unit is at least 2^-23 of the largest value.
     */
    static double bf16Units(float[] actual, float[] expected) {
        double greatest = 0;
        for (float value : expected) {
            greatest = Math.max(greatest, Math.abs(value));
        }
        double least = Math.max(greatest * 0x1p-23, Float.MIN_VALUE);
        double largest = 0;
        for (int i = 0; i < expected.length; i++) {
            // a float's last place is 2^16 times finer
            double unit = Math.max(Math.ulp(expected[i]) * 65536.0, least);
            largest = Math.max(largest, Math.abs((double) actual[i] - expected[i]) / unit);
        }
        return largest;
    }

    private static double relativeL2(float[] actual, float[] expected) {
        return Numerics.relativeL2(Numerics.widen(actual), Numerics.widen(expected));
    }
}
