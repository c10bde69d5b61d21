package org.tornadomoe.tornado.graph;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.Arrays;
import java.util.SplittableRandom;
import org.tornadomoe.RandomLayer;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.config.MoeActivation;
import org.tornadomoe.quant.Int8Activations;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.Int8Quantizer;
import org.tornadomoe.quant.Progress;
import org.tornadomoe.reference.Activations;
import org.tornadomoe.reference.Numerics;
import org.tornadomoe.tornado.Families;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.HostMemory;

/** What must hold of single stages on any device, the interpreter included. */
public final class StageChecks {
    private StageChecks() {}

    /**
     * The activation's kernel against its formula over the whole range of its arguments, relatively to the value, or to
     * 1e-4 where that is greater.
     */
    public static void activationIsAccurate(Device device, MoeActivation activation, double tolerance) {
        float[] points = new float[201];
        for (int i = 0; i < points.length; i++) {
            float x = (i - 100) / 100f;
            points[i] = 12 * x * x * x;
        }
        points[0] = -12_000;
        points[200] = 12_000;
        int n = points.length;
        RandomLayer layer = RandomLayer.of(1, 1, 4, n, n, 1).activatedBy(activation);
        FusedMoeConfig config = layer.config();
        int columns = config.gateUpRows();
        float[] gateUp = new float[n * columns];
        for (int i = 0; i < gateUp.length; i++) {
            int row = i / columns;
            int c = i % columns;
            boolean up = activation.isInterleaved() ? c % 2 == 1 : c >= n;
            gateUp[i] = points[up ? (row + c) % n : activation.isInterleaved() ? c / 2 : c];
        }
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, Int8Scheme.W8A16_CHANNEL, Progress.NONE);
                LayerArrays arrays = Families.arrays(config, int8, Long.MAX_VALUE, HostMemory.of(device.backend()))) {
            MemorySegment.copy(gateUp, 0, arrays.work.gateUp.getSegment(), ValueLayout.JAVA_FLOAT, 0, gateUp.length);
            arrays.work.header.set(0, n);
            arrays.work.keys.init(0);
            StageRun.execute(device, "activation", Families.program(arrays).activateAndQuantize(), n);
            double[] expected = Activations.apply(config, Numerics.widen(gateUp), n);
            for (int i = 0; i < expected.length; i++) {
                assertThat((double) arrays.work.activated.get(i))
                        .as("%s of row %d, column %d", activation, i / n, i % n)
                        .isCloseTo(expected[i], within(tolerance * Math.max(1e-4, Math.abs(expected[i]))));
            }
        }
    }

    /**
     * Activations are quantised to the very bits of {@link Int8Activations}, at whatever magnitude, where quotients are
     * next to what they are rounded or truncated at.
     */
    public static void quantizationIsExact(Device device, Int8Quantization quantization) {
        int tokens = 90;
        RandomLayer layer = RandomLayer.of(1, 1, 150, 4, tokens, 1);
        int h = layer.config().hiddenDim();
        int group = quantization.scheme() == Int8Scheme.W8A8_BLOCK ? quantization.colsPerScale(h) : h;
        SplittableRandom random = new SplittableRandom(1);
        float[] hidden = new float[tokens * h];
        float greatest = 1;
        for (int i = 0; i < hidden.length; i++) {
            boolean first = i % h % group == 0;
            if (quantization.scheme() == Int8Scheme.W8A8_TENSOR ? i == 0 : first) {
                // The least is less than what a scale is made of at least.
                greatest = (float) Math.scalb(random.nextDouble(1, 2), random.nextInt(-34, 121));
            }
            float exact = random.nextInt(-254, 255) / 2f * (Math.max(greatest, Int8Activations.MIN_ABS_MAX) / 127);
            int ulps = random.nextInt(-2, 3);
            hidden[i] = first ? greatest : Float.intBitsToFloat(Float.floatToIntBits(exact) + ulps);
            if (!(Math.abs(hidden[i]) <= greatest)) {
                hidden[i] = 0;
            }
        }
        byte[] expected = new byte[hidden.length];
        float[] scales = new float[tokens * Math.ceilDiv(h, group)];
        if (quantization.scheme() == Int8Scheme.W8A8_TENSOR) {
            Arrays.fill(scales, Int8Activations.tensorScale(hidden, hidden.length));
            Int8Activations.quantize(hidden, hidden.length, scales[0], expected);
        } else {
            Int8Activations.quantizeGroups(hidden, tokens, h, group, quantization.roundToNearest(), expected, scales);
        }
        try (Int8Experts int8 = Int8Quantizer.quantize(layer, quantization, Progress.NONE);
                LayerArrays arrays =
                        Families.arrays(layer.config(), int8, Long.MAX_VALUE, HostMemory.of(device.backend()))) {
            MemorySegment.copy(hidden, 0, arrays.work.hidden.getSegment(), ValueLayout.JAVA_FLOAT, 0, hidden.length);
            arrays.setTokens(tokens);
            StageRun.execute(device, "quantization", Families.program(arrays).quantizeTokens(), tokens);
            assertThat(arrays.work.hiddenScales.toHeapArray()).isEqualTo(scales);
            byte[] rows = arrays.work.hiddenQ.getSegment().toArray(ValueLayout.JAVA_BYTE);
            for (int i = 0; i < hidden.length; i++) {
                assertThat(rows[i / h * 4 * arrays.shape.hiddenInts + i % h])
                        .as("%s by %s", hidden[i], scales[i / h * (scales.length / tokens) + i % h / group])
                        .isEqualTo(expected[i]);
            }
        }
    }
}
