package org.tornadomoe.tornado.graph;

import static org.assertj.core.api.Assertions.assertThat;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.List;
import java.util.SplittableRandom;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.MoeLayer;
import org.tornadomoe.MoeOptions;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.quant.QuantizedWeights;
import org.tornadomoe.tornado.Families;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.HostMemory;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/** What must hold of hidden states of 16 bits on any device, the interpreter included. */
public final class HalfChecks {
    /** Odd, so that the last int has one value, and together more than there are bit patterns. */
    private static final int H = 257;

    private static final int M = 257;

    private HalfChecks() {}

    /**
     * Every bit pattern is widened, and values at every edge narrowed, as on the host.
     *
     * @param exact whether the device computes with subnormals and tells NaNs from infinities: under OpenCL's fast math
     *     it may not
     */
    public static void kernelsConvertAsTheHost(Device device, ScalarType type, boolean exact) {
        RandomLayer layer = RandomLayer.of(2, 1, H, 4, M, 1);
        FusedMoeConfig config = layer.config().toBuilder().inDtype(type).build();
        try (Int8Experts experts = QuantizedWeights.int8(layer, Int8Scheme.W8A8_CHANNEL, Progress.NONE);
                LayerArrays arrays =
                        Families.arrays(config, experts, Long.MAX_VALUE, HostMemory.of(device.backend()))) {
            LayerProgram stages = Families.program(arrays);
            arrays.setTokens(M);

            for (int i = 0; i < M * H; i++) {
                arrays.work.hiddenHalves.getSegment().set(ValueLayout.JAVA_SHORT, 2L * i, (short) i);
            }
            StageRun.execute(device, "widen", List.of(stages.widenHidden()), M);
            for (int i = 0; i < M * H; i++) {
                assertThat(bits(arrays.work.hidden, i))
                        .as("%s %x", type, i & 0xffff)
                        .isEqualTo(Float.floatToRawIntBits(HiddenStates.widen(type, (short) i)));
            }

            SplittableRandom random = new SplittableRandom(1);
            float[] values = new float[M * H];
            for (int i = 0; i < values.length; i++) {
                values[i] = edge(type, random, i);
                if (!exact && Math.abs(values[i]) < Float.MIN_NORMAL) {
                    values[i] = 1;
                }
                arrays.work.output.set(i, values[i]);
            }
            StageRun.execute(device, "narrow", List.of(stages.narrowOutput()), M);
            for (int i = 0; i < values.length; i++) {
                short got = half(arrays.work.outputHalves, i);
                if (Float.isNaN(values[i]) && exact) {
                    assertThat(HiddenStates.widen(type, got)).isNaN();
                } else if (Float.isNaN(values[i])) {
                    assertThat(Float.isFinite(HiddenStates.widen(type, got))).isFalse();
                } else {
                    assertThat(got).as("%s %s", type, values[i]).isEqualTo(HiddenStates.narrow(type, values[i]));
                }
            }
        }
    }

    /** The middle of two neighbours, just beside it, or anything; a zero is positive, as the layer's are. */
    private static float edge(ScalarType type, SplittableRandom random, int i) {
        float tooLarge = type == ScalarType.F16 ? 65520 : Float.intBitsToFloat(0x7f7f8000);
        float[] special = {
            0,
            Float.POSITIVE_INFINITY,
            Float.NEGATIVE_INFINITY,
            Float.NaN,
            Float.MAX_VALUE,
            tooLarge,
            Math.nextDown(tooLarge),
            -1e-30f
        };
        if (i < special.length) {
            return special[i];
        }
        int bits = random.nextInt(HalfTables.infinity(type) - 1);
        double below = HiddenStates.widen(type, (short) bits);
        float value = (float) ((below + HiddenStates.widen(type, (short) (bits + 1))) / 2);
        value = switch (i % 4) {
            case 0 -> Math.nextUp(value);
            case 1 -> Math.nextDown(value);
            case 2 -> (float) random.nextGaussian();
            default -> value;
        };
        return random.nextBoolean() || value == 0 ? Math.abs(value) : -value;
    }

    /** The layer of that type gives what the one in floats gives, rounded. */
    public static void layersAgree(String backend, @Nullable String device, ScalarType type) {
        RandomLayer weights = RandomLayer.of(4, 2, 27, 12, 16, 3);
        MoeOptions options =
                MoeOptions.DEFAULT.withMaxTokens(5).withBackend(backend).withDevice(device);
        try (MoeLayer floats = MoeLayer.of(weights, options);
                MoeLayer halves = MoeLayer.of(weights, options.withHiddenType(type))) {
            for (int tokens : new int[] {3, 5, 1}) {
                float[] hidden = weights.hidden(tokens, tokens);
                MemorySegment in = MemorySegment.ofArray(new short[hidden.length]);
                HiddenStates.write(type, hidden, hidden.length, in);
                MemorySegment out = MemorySegment.ofArray(new short[hidden.length + 1]);
                out.set(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * hidden.length, (short) 42);
                halves.forward(in, tokens, out, null);
                assertThat(out.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * hidden.length))
                        .isEqualTo((short) 42);

                float[] rounded = new float[hidden.length];
                HiddenStates.read(type, in, rounded, rounded.length);
                float[] expected = floats.forward(rounded);
                float[] door = halves.forward(hidden);
                for (int i = 0; i < expected.length; i++) {
                    short bits = HiddenStates.narrow(type, expected[i]);
                    assertThat(out.get(ValueLayout.JAVA_SHORT_UNALIGNED, 2L * i))
                            .isEqualTo(bits);
                    assertThat(door[i]).isEqualTo(HiddenStates.widen(type, bits));
                }
            }
        }
    }

    private static int bits(FloatArray array, int i) {
        return array.getSegment().get(ValueLayout.JAVA_INT, 4L * i);
    }

    private static short half(IntArray array, int i) {
        return array.getSegment().get(ValueLayout.JAVA_SHORT, 2L * i);
    }
}
