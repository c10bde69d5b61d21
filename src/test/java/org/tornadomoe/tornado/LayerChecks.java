package org.tornadomoe.tornado;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.modular.ChosenExperts;
import org.tornadomoe.modular.MoeKernel;
import org.tornadomoe.modular.StageValues;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.QuantizedTokens;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Stages;

/** What must hold of a layer on any device, the interpreter included. */
final class LayerChecks {
    private LayerChecks() {}

    /** Every stage, fed with the reference's input to it, gives the reference's output. */
    static void stagesMatchReference(TornadoExperts experts, Int8Scheme scheme, RandomLayer layer, int tokens) {
        FusedMoeConfig config = layer.config();
        float[] hidden = layer.hidden(tokens, 1);
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, scheme, Progress.NONE)) {
            Stages expected = Reference.forward(int8, hidden, tokens);
            StageValues given = values(expected);
            StageValues actual = experts.stages(config, int8, hidden, tokens, given);

            assertThat(actual.topkIds()).as("ids").isEqualTo(given.topkIds());
            close("weights", actual.topkWeights(), given.topkWeights(), 1e-5);
            // Device compilers may divide approximately, so a value on a rounding boundary can go the other way.
            sameIntegers("a1", actual.a1(), given.a1());
            close("a1 scales", actual.a1Scales(), given.a1Scales(), 1e-6);
            close("gemm1", actual.gemm1(), given.gemm1(), 1e-5);
            close("act", actual.act(), given.act(), 1e-5);
            sameIntegers("a2", actual.a2(), given.a2());
            close("a2 scales", actual.a2Scales(), given.a2Scales(), 1e-6);
            close("gemm2", actual.gemm2(), given.gemm2(), 1e-5);
            close("output", actual.output(), given.output(), 1e-5);
        }
    }

    /** The whole layer gives the reference's output for several token counts, one after the other, and the same bits again. */
    static void forwardMatchesReference(
            TornadoExperts experts, Int8Scheme scheme, RandomLayer layer, int... tokenCounts) {
        int topK = layer.config().expertsPerToken();
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, scheme, Progress.NONE);
                MoeKernel kernel = experts.load(layer.config(), int8)) {
            for (int tokens : tokenCounts) {
                float[] hidden = layer.hidden(tokens, tokens);
                Stages expected = Reference.forward(int8, hidden, tokens);
                ChosenExperts chosen = ChosenExperts.allocate(tokens, topK);
                float[] output = forward(kernel, hidden, tokens, chosen);
                assertThat(chosen.ids())
                        .as("ids of %d tokens", tokens)
                        .isEqualTo(expected.routing().ids());
                // The second quantisation amplifies last-bit differences: an activation on a boundary moves by one
                // step.
                assertThat(Reference.relativeL2(Reference.widen(output), expected.output()))
                        .as("relative L2 of %d tokens", tokens)
                        .isLessThan(scheme.quantizesActivations() ? 2e-3 : 1e-5);
                assertThat(forward(kernel, hidden, tokens, chosen)).isEqualTo(output);
            }
        }
    }

    private static float[] forward(MoeKernel kernel, float[] hidden, int tokens, ChosenExperts chosen) {
        try (Arena arena = Arena.ofConfined()) {
            MemorySegment output = arena.allocate(4L * hidden.length, 16);
            output.fill((byte) 0xFF);
            kernel.forward(arena.allocateFrom(ValueLayout.JAVA_FLOAT, hidden), tokens, output, chosen);
            return output.toArray(ValueLayout.JAVA_FLOAT);
        }
    }

    /** The reference's stages as what the kernels exchange. */
    static StageValues values(Stages stages) {
        QuantizedTokens none = new QuantizedTokens(new byte[0], new float[0]);
        QuantizedTokens a1 = stages.a1() == null ? none : stages.a1();
        QuantizedTokens a2 = stages.a2() == null ? none : stages.a2();
        return new StageValues(
                narrow(stages.logits()),
                stages.routing().ids(),
                narrow(stages.routing().weights()),
                a1.values(),
                a1.scales(),
                narrow(stages.gemm1()),
                narrow(stages.act()),
                a2.values(),
                a2.scales(),
                narrow(stages.gemm2()),
                narrow(stages.output()));
    }

    static float[] narrow(double[] values) {
        float[] floats = new float[values.length];
        for (int i = 0; i < values.length; i++) {
            floats[i] = (float) values[i];
        }
        return floats;
    }

    private static void sameIntegers(String what, byte[] actual, byte[] expected) {
        assertThat(actual).as(what).hasSameSizeAs(expected);
        int different = 0;
        for (int i = 0; i < actual.length; i++) {
            assertThat((int) actual[i]).as("%s[%d]", what, i).isCloseTo(expected[i], within(1));
            different += actual[i] == expected[i] ? 0 : 1;
        }
        assertThat(different).as("differing values of %s", what).isLessThanOrEqualTo(1 + actual.length / 10_000);
    }

    /** Relative to the greatest magnitude, since sums of terms of either sign cancel; and every element was written. */
    private static void close(String what, float[] actual, float[] expected, double tolerance) {
        assertThat(actual).as(what).hasSameSizeAs(expected);
        double greatest = 0;
        for (float value : expected) {
            greatest = Math.max(greatest, Math.abs(value));
        }
        for (int i = 0; i < actual.length; i++) {
            assertThat((double) actual[i]).as("%s[%d]", what, i).isCloseTo(expected[i], within(tolerance * greatest));
        }
    }
}
