package org.tornadomoe.quant;

import java.lang.foreign.Arena;
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
 * Quantises a layer's weights to int8, in float arithmetic. The values that share a scale are a row, a block, a group
 * or an expert: {@code scale = max(|w|, 1e-10) / 127}, {@code q = round(w / scale)} with halves to even, clamped to
 * [-127, 127]. For rows that is vLLM's online rule ({@code quantization/online/int8.py}) with a floor, so that a row of
 * zeros gives zeros instead of NaN.
 *
 * <p>With zero points, the range from the minimum to the maximum weight, 0 included, is mapped to [-128, 127]: {@code
 * scale = max(greatest − least, 1e-10) / 255}, {@code z = round(−least / scale) − 128}, {@code q = round(w / scale) +
 * z}.
 *
 * <p>The router and biases stay float.
 */
public final class Int8Quantizer {
    /**
     * Added to a float below 2^22, it leaves the nearest integer, halves to even, in the lower bits; subtracted again,
     * it leaves that integer as a float.
     */
    static final float ROUNDS = 0x1.8p23f;

    /** Rows that a thread takes at a time: enough that threads don't queue, few enough that they finish together. */
    private static final int CHUNK = 64;

    private Int8Quantizer() {}

    /**
     * Quantises with the scheme's default block or group; otherwise like the method with an {@link Int8Quantization}.
     */
    public static Int8Experts quantize(ExpertWeights source, Int8Scheme scheme, Progress progress) {
        return quantize(source, Int8Quantization.of(scheme), progress);
    }

    /**
     * Quantises on all cores. The same weights give the same bits on any number of cores.
     *
     * @param progress is notified in rows: E * 2I of w13, then E * H of w2
     * @return the experts, which the caller must close; activation scales are found at run time
     * @throws IllegalArgumentException if a weight is NaN or infinite; the message names the file and tensor if known,
     *     expert, projection, row and column. After this or any other failure nothing stays allocated.
     * @throws CancellationException if the calling thread is interrupted meanwhile; it stays interrupted
     * @throws OutOfMemoryError if the int8 weights do not fit
     * @throws RuntimeException if the weights' files were changed meanwhile ({@link ExpertWeights#requireUnchanged})
     */
    public static Int8Experts quantize(ExpertWeights source, Int8Quantization quantization, Progress progress) {
        return quantize(source, quantization, progress, Arena.ofShared());
    }

    /** Quantises into an arena that the result owns; closes it if this throws. */
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
     * Quantises one matrix on all cores, as {@link #quantize(ExpertWeights, Int8Quantization, Progress)} does a
     * projection; for matrices outside the experts.
     *
     * @param arena the arena for the result, [1, rows, cols]
     * @throws IllegalArgumentException if a weight is NaN or infinite, or the matrix is empty
     * @throws CancellationException if the calling thread is interrupted meanwhile; it stays interrupted
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
    interface RowsDone {
        void rows(long done);
    }

    private static void quantizeRows(
            Int8Tensor tensor,
            BandQuantizer.RowReader reader,
            BandQuantizer.CodeReader coded,
            BandQuantizer.NumberReader numbered,
            BandQuantizer.RowName name,
            BandQuantizer.RowName source,
            RowsDone progress) {
        // A band is a set of rows that share scales; one thread computes a whole band.
        int bandsPerExpert = tensor.scaleRows();
        int chunk = Math.max(1, CHUNK / tensor.rowsPerScale());
        inParallel(
                tensor.experts() * bandsPerExpert,
                chunk,
                () -> {
                    BandQuantizer band = new BandQuantizer(tensor, reader, coded, numbered, name, source);
                    return i -> band.quantize(i / bandsPerExpert, i % bandsPerExpert);
                },
                progress);
    }

    /**
     * Runs all bands on all cores.
     *
     * @param chunk bands that a thread takes at a time
     * @param threads makes each thread's function, which computes a band and returns its number of rows
     */
    static void inParallel(int bands, int chunk, Supplier<IntUnaryOperator> threads, RowsDone progress) {
        AtomicLong next = new AtomicLong();
        // Threads take chunks in ascending order and drop a chunk only for a failure before it. So on any number of
        // cores the lowest failure is the first one in the tensor.
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
        // Closing waits for the workers. If this thread is interrupted, it interrupts them and goes on waiting.
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
}
