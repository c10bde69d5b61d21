package org.tornadomoe.quant;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Objects;
import java.util.concurrent.CancellationException;
import org.jspecify.annotations.Nullable;

/** One thread that quantises bands, the rows that share scales, and its buffers. Not thread-safe. */
final class BandQuantizer {
    /** Whether {@link NumberGroups}, which needs the Vector API, can be used. */
    private static final boolean VECTORS =
            ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent();

    /** The maximum number of a band's values to keep; larger bands are read twice. */
    private static final int MOST_KEPT = 1 << 19;

    /** The minimum number of values per scale for quantising by codes. */
    private static final int MANY = 1024;

    private static final VarHandle LONGS = MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);
    private static final long MAGNITUDES = 0x7f7f7f7f7f7f7f7fL;
    private static final long ONES = 0x0101010101010101L;

    /** The bits of infinity; only NaNs are above, without their sign. */
    private static final int INFINITY = 0x7f800000;

    /**
     * Groups below this size are too short for the JVM to vectorise; there comparing bits is faster than comparing
     * floats.
     */
    private static final int SHORT_GROUP = 256;

    @FunctionalInterface
    interface RowReader {
        void read(int expert, int row, float[] into);
    }

    @FunctionalInterface
    interface CodeReader {
        float @Nullable [] read(int expert, int row, int colsPerScale, byte[] codes, float[] scales);
    }

    @FunctionalInterface
    interface NumberReader {
        boolean read(int expert, int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins);
    }

    @FunctionalInterface
    interface RowName {
        String of(int expert, int row);
    }

    private final Int8Tensor tensor;
    private final RowReader reader;
    private final CodeReader coded;
    private final NumberReader numbered;
    private final RowName name;
    private final RowName source;
    private final int colsPerScale;

    /** The band's rows; one row if they are not kept. */
    private final float[][] weights;

    private final byte[] values;

    /** The scale of each column. */
    private final float[] scaleOf;

    /** The zero point of each column; zeros without zero points. */
    private final float[] zeroOf;

    private final float[] least;
    private final float[] greatest;

    /** Rows as codes, and their scales; empty if there are too few values per scale, or zero points. */
    private final byte[][] codes;

    private final float[][] scalesOf;

    /** The int8 value of each code, for one group after the other, and the scale for which it holds. */
    private final byte[][] mapped;

    private final float[] mappedScale;

    /** A row as small integers; null if they can't be used. */
    private final @Nullable NumberGroups groups;

    BandQuantizer(
            Int8Tensor tensor,
            RowReader reader,
            CodeReader coded,
            NumberReader numbered,
            RowName name,
            RowName source) {
        this.tensor = tensor;
        this.reader = reader;
        this.coded = coded;
        this.numbered = numbered;
        this.name = name;
        this.source = source;
        colsPerScale = Math.min(tensor.colsPerScale(), tensor.cols());
        int rows = Math.min(tensor.rows(), tensor.rowsPerScale());
        weights = new float[(long) rows * tensor.cols() <= MOST_KEPT ? rows : 1][tensor.cols()];
        values = new byte[tensor.cols()];
        scaleOf = new float[tensor.cols()];
        zeroOf = new float[tensor.cols()];
        least = new float[tensor.scaleCols()];
        greatest = new float[tensor.scaleCols()];
        boolean many = tensor.zeroPoints() == null && (long) rows * colsPerScale >= MANY;
        codes = new byte[many && weights.length == rows ? rows : 0][tensor.cols()];
        scalesOf = new float[codes.length][tensor.scaleCols()];
        mapped = new byte[codes.length == 0 ? 0 : tensor.scaleCols()][256];
        mappedScale = new float[tensor.scaleCols()];
        groups = VECTORS && tensor.zeroPoints() == null && rows == 1 && NumberGroups.serve(tensor.cols(), colsPerScale)
                ? new NumberGroups(tensor.cols(), colsPerScale)
                : null;
    }

    /**
     * Finds the scales in a first pass over the rows and rounds in a second, which reads them again if they are too
     * many to keep.
     */
    int quantize(int expert, int band) {
        int first = band * tensor.rowsPerScale();
        int last = Math.min(tensor.rows() - first, tensor.rowsPerScale()) + first;
        if (last - first <= codes.length && quantizeCodes(expert, first, last)) {
            return last - first;
        }
        if (groups != null && quantizeNumbers(groups, expert, first)) {
            return 1;
        }
        boolean kept = last - first <= weights.length;
        Arrays.fill(least, 0);
        Arrays.fill(greatest, 0);
        for (int row = first; row < last; row++) {
            if (Thread.currentThread().isInterrupted()) {
                throw new CancellationException("quantisation was interrupted");
            }
            float[] weights = this.weights[kept ? row - first : 0];
            reader.read(expert, row, weights);
            widen(expert, row, weights);
        }
        int scales = tensor.scaleIndex(expert, first, 0);
        for (int i = 0; i < least.length; i++) {
            setScale(scales + i, least[i], greatest[i]);
        }
        for (int row = first; row < last; row++) {
            float[] weights = this.weights[kept ? row - first : 0];
            if (!kept) {
                reader.read(expert, row, weights);
            }
            round(scales, weights);
            tensor.setRow(expert, row, values, 0);
        }
        return last - first;
    }

    /**
     * The same by codes: the largest code has the largest value, and under one scale each code maps to one int8
     * value.
     *
     * @return false if the rows aren't stored as codes, or contain a value that must be refused
     */
    private boolean quantizeCodes(int expert, int first, int last) {
        Arrays.fill(greatest, 0);
        float[] table = null;
        for (int row = first; row < last; row++) {
            if (Thread.currentThread().isInterrupted()) {
                throw new CancellationException("quantisation was interrupted");
            }
            byte[] codes = this.codes[row - first];
            float[] scales = scalesOf[row - first];
            float[] its = coded.read(expert, row, colsPerScale, codes, scales);
            if (its == null || (table != null && its != table)) {
                return false;
            }
            table = its;
            for (int group = 0, from = 0; from < codes.length; group++, from += colsPerScale) {
                int greatestCode = greatestCode(codes, from, Math.min(codes.length, from + colsPerScale));
                float most = table[greatestCode] * scales[group];
                if (!(scales[group] >= 0 && most <= Float.MAX_VALUE)) {
                    return false;
                }
                greatest[group] = Math.max(greatest[group], most);
            }
        }
        int index = tensor.scaleIndex(expert, first, 0);
        for (int i = 0; i < greatest.length; i++) {
            setScale(index + i, 0, greatest[i]);
        }
        Arrays.fill(mappedScale, Float.NaN);
        for (int row = first; row < last; row++) {
            byte[] codes = this.codes[row - first];
            for (int group = 0, from = 0; from < codes.length; group++, from += colsPerScale) {
                float scale = scalesOf[row - first][group];
                if (scale != mappedScale[group]) {
                    map(Objects.requireNonNull(table), scale, tensor.scales()[index + group], mapped[group]);
                    mappedScale[group] = scale;
                }
                map(codes, from, Math.min(codes.length, from + colsPerScale), mapped[group]);
            }
            tensor.setRow(expert, row, codes, 0);
        }
        return true;
    }

    /** The same by small integers. */
    private boolean quantizeNumbers(NumberGroups row, int expert, int first) {
        if (Thread.currentThread().isInterrupted()) {
            throw new CancellationException("quantisation was interrupted");
        }
        if (!numbered.read(expert, first, colsPerScale, row.numbers, row.scales, row.mins)
                || !row.quantize(tensor.scales(), tensor.scaleIndex(expert, first, 0), values)) {
            return false;
        }
        tensor.setRow(expert, first, values, 0);
        return true;
    }

    /** Without the signs. */
    private static int greatestCode(byte[] codes, int from, int to) {
        long most = 0; // one maximum for each of eight byte positions
        int i = from;
        for (; i + 8 <= to; i += 8) {
            long eight = (long) LONGS.get(codes, i) & MAGNITUDES;
            long isLess = (((((most | ~MAGNITUDES) - eight) >>> 7) & ONES) ^ ONES) * 0xff;
            most = (eight & isLess) | (most & ~isLess);
        }
        int greatest = 0;
        for (; most != 0; most >>>= 8) {
            greatest = Math.max(greatest, (int) most & 0x7f);
        }
        for (; i < to; i++) {
            greatest = Math.max(greatest, codes[i] & 0x7f);
        }
        return greatest;
    }

    /** Like {@link #round}, for the values of all codes under one scale. */
    private static void map(float[] table, float scale, float into, byte[] mapped) {
        for (int code = 0; code < mapped.length; code++) {
            float nearest = table[code] * scale / into + Int8Quantizer.ROUNDS - Int8Quantizer.ROUNDS;
            mapped[code] = (byte) Math.max(-127f, Math.min(127f, nearest));
        }
    }

    private static void map(byte[] codes, int from, int to, byte[] mapped) {
        for (int i = from; i < to; i++) {
            codes[i] = mapped[codes[i] & 0xff];
        }
    }

    private void widen(int expert, int row, float[] weights) {
        for (int group = 0, from = 0; from < weights.length; group++, from += colsPerScale) {
            int to = Math.min(weights.length, from + colsPerScale);
            if (tensor.zeroPoints() == null && colsPerScale <= SHORT_GROUP) {
                int most = greatestBits(weights, from, to);
                if (most >= INFINITY) {
                    refuse(expert, row, weights);
                }
                greatest[group] = Math.max(greatest[group], Float.intBitsToFloat(most));
                continue;
            }
            float low = 0;
            float high = 0;
            for (int i = from; i < to; i++) {
                low = Math.min(low, weights[i]);
                high = Math.max(high, weights[i]);
            }
            if (!(low >= -Float.MAX_VALUE && high <= Float.MAX_VALUE)) { // NaN stays NaN
                refuse(expert, row, weights);
            }
            least[group] = Math.min(least[group], low);
            greatest[group] = Math.max(greatest[group], high);
        }
    }

    /** The maximum of the absolute values' bits. Four independent maxima hide the latency. */
    private static int greatestBits(float[] weights, int from, int to) {
        int a = 0;
        int b = 0;
        int c = 0;
        int d = 0;
        int i = from;
        for (; i + 4 <= to; i += 4) {
            a = Math.max(a, magnitude(weights[i]));
            b = Math.max(b, magnitude(weights[i + 1]));
            c = Math.max(c, magnitude(weights[i + 2]));
            d = Math.max(d, magnitude(weights[i + 3]));
        }
        for (; i < to; i++) {
            a = Math.max(a, magnitude(weights[i]));
        }
        return Math.max(Math.max(a, b), Math.max(c, d));
    }

    private static int magnitude(float weight) {
        return Float.floatToRawIntBits(weight) & Integer.MAX_VALUE;
    }

    private void refuse(int expert, int row, float[] weights) {
        int i = 0;
        while (Float.isFinite(weights[i])) {
            i++;
        }
        String from = source.of(expert, row);
        throw new IllegalArgumentException((from.isEmpty() ? "weight" : from) + ": expected finite values, got "
                + weights[i] + " at expert " + expert + ", " + name.of(expert, row) + ", column " + i);
    }

    private void setScale(int at, float least, float greatest) {
        byte[] zeroPoints = tensor.zeroPoints();
        if (zeroPoints == null) {
            tensor.scales()[at] = Math.max(Math.max(-least, greatest), Int8Activations.MIN_ABS_MAX) / 127f;
        } else {
            // The difference of two floats may overflow float.
            double range = Math.max((double) greatest - least, Int8Activations.MIN_ABS_MAX);
            float scale = (float) (range / 255);
            tensor.scales()[at] = scale;
            zeroPoints[at] = (byte) (Math.clamp((long) Math.rint(-least / scale), 0, 255) - 128);
        }
    }

    /** Rounds a row; overwrites its weights. */
    private void round(int scales, float[] weights) {
        byte[] zeroPoints = tensor.zeroPoints();
        float least = zeroPoints == null ? -127 : -128;
        for (int group = 0, from = 0; from < weights.length; group++, from += colsPerScale) {
            int to = Math.min(weights.length, from + colsPerScale);
            Arrays.fill(scaleOf, from, to, tensor.scales()[scales + group]);
            if (zeroPoints != null) {
                Arrays.fill(zeroOf, from, to, zeroPoints[scales + group]);
            }
        }
        round(weights, scaleOf, zeroOf, least);
        narrow(weights, values);
    }

    /** A separate loop, like the next one, so that the JVM vectorises it. */
    private static void round(float[] weights, float[] scales, float[] zeros, float least) {
        for (int i = 0; i < weights.length; i++) {
            float nearest = weights[i] / scales[i] + Int8Quantizer.ROUNDS - Int8Quantizer.ROUNDS + zeros[i];
            weights[i] = Math.max(least, Math.min(127, nearest));
        }
    }

    private static void narrow(float[] weights, byte[] values) {
        for (int i = 0; i < weights.length; i++) {
            values[i] = (byte) weights[i];
        }
    }
}
