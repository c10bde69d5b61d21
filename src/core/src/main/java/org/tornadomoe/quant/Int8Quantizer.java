package org.tornadomoe.quant;

import java.lang.foreign.Arena;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.Objects;
import java.util.concurrent.CancellationException;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.IntUnaryOperator;
import java.util.function.Supplier;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.Int8Quantization;
import org.tornadomoe.config.Int8Scheme;

/**
 * Turns a layer's weights into int8, in float arithmetic. For all that share a scale, a row, a block, a group or an
 * expert: {@code scale = max(|w|, 1e-10) / 127}, {@code q = round(w / scale)} with halves to even, clamped to [-127,
 * 127]. For rows that is vLLM's online rule ({@code quantization/online/int8.py}) with a floor, so that a row of zeros
 * gives zeros instead of NaN.
 *
 * <p>With zero points the range from the least to the greatest weight, 0 included, is spread over [-128, 127]: {@code
 * scale = max(greatest − least, 1e-10) / 255}, {@code z = round(−least / scale) − 128}, {@code q = round(w / scale) +
 * z}.
 *
 * <p>The router and biases stay float.
 */
public final class Int8Quantizer {
    /** Whether {@link NumberGroups} can be asked anything: it is in vectors. */
    private static final boolean VECTORS =
            ModuleLayer.boot().findModule("jdk.incubator.vector").isPresent();

    /**
     * Added to a float below 2^22 it leaves the nearest integer, halves to even, in the lower bits; taken away again it
     * leaves that alone.
     */
    static final float ROUNDS = 0x1.8p23f;

    /** Rows a thread takes at a time: enough that threads don't queue, few enough that they finish together. */
    private static final int CHUNK = 64;

    private Int8Quantizer() {}

    /** With the scheme's own block or group; otherwise as the other. */
    public static Int8Experts quantize(ExpertWeights source, Int8Scheme scheme, Progress progress) {
        return quantize(source, Int8Quantization.of(scheme), progress);
    }

    /**
     * Quantises on all cores. The same weights give the same bits, whatever the number of cores.
     *
     * @param progress told in rows: E * 2I of w13, then E * H of w2
     * @return the experts, to be closed by the caller; scales of activations are found at run time
     * @throws IllegalArgumentException if a weight is NaN or infinite; the message names file and tensor where they are
     *     known, expert, projection, row and column. Nothing stays allocated, also after any other failure.
     * @throws CancellationException if the calling thread is interrupted meanwhile; it stays interrupted
     * @throws OutOfMemoryError if the int8 weights do not fit
     * @throws RuntimeException if the weights' files were changed meanwhile ({@link ExpertWeights#requireUnchanged})
     */
    public static Int8Experts quantize(ExpertWeights source, Int8Quantization quantization, Progress progress) {
        return quantize(source, quantization, progress, Arena.ofShared());
    }

    /** With the arena that the result is allocated in and owns, closed if this throws. */
    static Int8Experts quantize(ExpertWeights source, Int8Quantization quantization, Progress progress, Arena arena) {
        try {
            FusedMoeConfig config = source.config();
            RouterWeights router = source.router();
            router.requireFits(config);
            int experts = config.globalNumExperts();
            Int8Tensor w13 = allocate(arena, experts, config.gateUpRows(), config.hiddenDim(), quantization);
            Int8Tensor w2 = allocate(arena, experts, config.hiddenDim(), config.intermediateSize(), quantization);
            long w13Rows = (long) experts * w13.rows();
            long rows = w13Rows + (long) experts * w2.rows();
            quantizeRows(
                    w13,
                    source::gateUpRow,
                    source::gateUpCodes,
                    source::gateUpNumbers,
                    (expert, row) -> config.gateUpRow(row),
                    source::gateUpSource,
                    done -> progress.advanced(done, rows));
            quantizeRows(
                    w2,
                    source::downRow,
                    source::downCodes,
                    source::downNumbers,
                    (expert, row) -> "down projection, row " + row,
                    (expert, row) -> source.downSource(expert),
                    done -> progress.advanced(w13Rows + done, rows));
            float @Nullable [] w13Bias = source.w13Bias();
            float @Nullable [] w2Bias = source.w2Bias();
            source.requireUnchanged();
            return Int8Experts.builder(config, quantization.scheme(), w13, w2, arena)
                    .router(router)
                    .biases(w13Bias, w2Bias)
                    .roundToNearest(quantization.roundToNearest())
                    .build();
        } catch (InternalError e) {
            arena.close();
            source.requireUnchanged();
            throw e;
        } catch (Throwable e) {
            arena.close();
            throw e;
        }
    }

    /**
     * Quantises one matrix, on all cores, as {@link #quantize(ExpertWeights, Int8Quantization, Progress)} does a
     * projection: for what of a model is no expert.
     *
     * @param arena that the result, [1, rows, cols], is allocated in
     * @throws IllegalArgumentException if a weight is NaN or infinite, or the matrix is empty
     * @throws CancellationException as the other
     */
    public static Int8Tensor quantize(WeightRows source, Int8Quantization quantization, Arena arena) {
        Int8Tensor tensor = allocate(arena, 1, source.rows(), source.cols(), quantization);
        quantizeRows(
                tensor,
                (_, row, into) -> source.row(row, into),
                (_, _, _, _, _) -> null,
                (_, _, _, _, _, _) -> false,
                (_, row) -> "row " + row,
                (_, _) -> source.source(),
                _ -> {});
        return tensor;
    }

    private static Int8Tensor allocate(Arena arena, int experts, int rows, int cols, Int8Quantization quantization) {
        int perScale = quantization.colsPerScale(cols);
        return Int8Tensor.allocate(
                arena, experts, rows, cols, quantization.rowsPerScale(rows), perScale, quantization.zeroPoints());
    }

    @FunctionalInterface
    private interface RowReader {
        void read(int expert, int row, float[] into);
    }

    @FunctionalInterface
    private interface CodeReader {
        float @Nullable [] read(int expert, int row, int colsPerScale, byte[] codes, float[] scales);
    }

    @FunctionalInterface
    private interface NumberReader {
        boolean read(int expert, int row, int colsPerScale, byte[] numbers, float[] scales, float[] mins);
    }

    @FunctionalInterface
    private interface RowName {
        String of(int expert, int row);
    }

    @FunctionalInterface
    interface RowsDone {
        void rows(long done);
    }

    private static void quantizeRows(
            Int8Tensor tensor,
            RowReader reader,
            CodeReader coded,
            NumberReader numbered,
            RowName name,
            RowName source,
            RowsDone progress) {
        // A band is the rows that share scales; no band is split among threads.
        int bandsPerExpert = tensor.scaleRows();
        int chunk = Math.max(1, CHUNK / tensor.rowsPerScale());
        inParallel(
                tensor.experts() * bandsPerExpert,
                chunk,
                () -> {
                    Band band = new Band(tensor, reader, coded, numbered, name, source);
                    return i -> band.quantize(i / bandsPerExpert, i % bandsPerExpert);
                },
                progress);
    }

    /**
     * Does all bands on all cores.
     *
     * @param chunk bands that a thread takes at a time
     * @param threads makes what a thread does bands with, and tells how many rows one had
     */
    static void inParallel(int bands, int chunk, Supplier<IntUnaryOperator> threads, RowsDone progress) {
        AtomicLong next = new AtomicLong();
        // Chunks are taken in ascending order and a chunk is dropped only for a failure before it, so the lowest
        // failure is the first one in the tensor, on any number of cores.
        ConcurrentSkipListMap<Long, Throwable> failures = new ConcurrentSkipListMap<>();
        Object reporting = new Object();
        long[] done = {0};
        Runnable worker = () -> {
            long from = -1;
            try {
                IntUnaryOperator thread = threads.get();
                for (from = next.getAndAdd(chunk);
                        from < bands && failures.headMap(from).isEmpty();
                        from = next.getAndAdd(chunk)) {
                    int to = (int) Math.min(bands, from + chunk);
                    int rows = 0;
                    for (int i = (int) from; i < to; i++) {
                        rows += thread.applyAsInt(i);
                    }
                    synchronized (reporting) {
                        done[0] += rows;
                        progress.rows(done[0]);
                    }
                }
            } catch (Throwable e) {
                failures.put(from, e);
            }
        };
        int cores = Runtime.getRuntime().availableProcessors();
        // Closing waits for the workers; if this thread is interrupted, it interrupts them and waits on.
        try (ExecutorService pool = Executors.newFixedThreadPool(cores)) {
            for (int i = 0; i < cores; i++) {
                pool.execute(worker);
            }
        }
        if (!failures.isEmpty()) {
            switch (failures.firstEntry().getValue()) {
                case RuntimeException e -> throw e;
                case Error e -> throw e;
                case Throwable e -> throw new AssertionError(e);
            }
        }
    }

    /** What one thread needs to quantise the rows that share scales. */
    private static final class Band {
        /** The most values of a band that are kept, not read twice. */
        private static final int MOST_KEPT = 1 << 19;

        /** Values a scale from which on they are taken by their codes. */
        private static final int MANY = 1024;

        private static final VarHandle LONGS =
                MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);
        private static final long MAGNITUDES = 0x7f7f7f7f7f7f7f7fL;
        private static final long ONES = 0x0101010101010101L;

        /** The bits of infinity; only NaNs are above, without their sign. */
        private static final int INFINITY = 0x7f800000;

        /** Groups too short for the JVM to make vectors of: there bits are compared sooner than floats. */
        private static final int SHORT_GROUP = 256;

        private final Int8Tensor tensor;
        private final RowReader reader;
        private final CodeReader coded;
        private final NumberReader numbered;
        private final RowName name;
        private final RowName source;
        private final int colsPerScale;

        /** Rows, one or as many as are kept. */
        private final float[][] weights;

        private final byte[] values;

        /** Of each column. */
        private final float[] scaleOf;

        /** Zeros without zero points. */
        private final float[] zeroOf;

        private final float[] least;
        private final float[] greatest;

        /** Rows in codes, and their scales; none where there are too few values a scale, or zero points. */
        private final byte[][] codes;

        private final float[][] scalesOf;

        /** What becomes of each code, a group after the other, and under which scale. */
        private final byte[][] mapped;

        private final float[] mappedScale;

        /** A row in whole numbers; null where they don't serve. */
        private final @Nullable NumberGroups groups;

        Band(
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
            groups = VECTORS
                            && tensor.zeroPoints() == null
                            && rows == 1
                            && NumberGroups.serve(tensor.cols(), colsPerScale)
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
         * The same by codes: the greatest code has the greatest value, and a code becomes one number under a scale.
         *
         * @return false if the rows aren't stored so, or hold what is refused
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

        /** The same by whole numbers. */
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
            long most = 0; // of each eighth code
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

        /** As {@link #round}, of the values that codes have under a scale. */
        private static void map(float[] table, float scale, float into, byte[] mapped) {
            for (int code = 0; code < mapped.length; code++) {
                float nearest = table[code] * scale / into + ROUNDS - ROUNDS;
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

        /** Without the signs. Four at a time, none of which waits for another. */
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
                // The difference of two floats may be too large for a float.
                double range = Math.max((double) greatest - least, Int8Activations.MIN_ABS_MAX);
                float scale = (float) (range / 255);
                tensor.scales()[at] = scale;
                zeroPoints[at] = (byte) (Math.clamp((long) Math.rint(-least / scale), 0, 255) - 128);
            }
        }

        /** Rounds a row, whose weights are gone afterwards. */
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

        /** In a loop of its own, as the next, since the JVM makes vectors of these. */
        private static void round(float[] weights, float[] scales, float[] zeros, float least) {
            for (int i = 0; i < weights.length; i++) {
                float nearest = weights[i] / scales[i] + ROUNDS - ROUNDS + zeros[i];
                weights[i] = Math.max(least, Math.min(127, nearest));
            }
        }

        private static void narrow(float[] weights, byte[] values) {
            for (int i = 0; i < weights.length; i++) {
                values[i] = (byte) weights[i];
            }
        }
    }
}
