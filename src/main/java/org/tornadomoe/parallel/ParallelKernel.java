package org.tornadomoe.parallel;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.FutureTask;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.modular.ChosenExperts;
import org.tornadomoe.modular.InsufficientMemoryException;
import org.tornadomoe.modular.MoeExecutionException;
import org.tornadomoe.modular.MoeKernel;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.RankWeights;
import org.tornadomoe.quant.RouterWeights;
import org.tornadomoe.reference.Reference;
import org.tornadomoe.reference.Router;
import org.tornadomoe.reference.Routing;

/**
 * One layer on several devices at the same time. Every device gets the hidden states and computes its part of the output, by a thread of its
 * own; the caller waits for all, and adds the parts in the order of the devices, in float, so that the same input gives the same bits. Of
 * hidden states of 16 bits the parts are rounded, and their sum.
 *
 * <p>A device that fails makes the call fail, with its name, when the others are through; nothing is written to the output then, and the next
 * call uses all devices again. Calls take turns; a {@link #lane} has threads and partial outputs of its own.
 */
final class ParallelKernel implements MoeKernel {
    /** Values that are added at a time, few enough for a core's first cache. */
    private static final int CHUNK = 2048;

    /** Chunks that are worth another core. */
    private static final int CHUNKS_PER_TASK = 64;

    private final Spread spread;
    private final FusedMoeConfig config;
    private final RouterWeights router;
    private final List<Part> parts = new ArrayList<>();
    private final Arena arena = Arena.ofShared();
    private final ReentrantLock turn = new ReentrantLock(true);

    /** Where hidden states go that only their caller's thread may read. */
    private @Nullable MemorySegment input;

    /** What one device does of a layer: the partial output is [M, H]. */
    private record Part(String device, MoeKernel kernel, DeviceThread thread, MemorySegment output) {}

    private ParallelKernel(Spread spread, RouterWeights router) {
        this.spread = spread;
        this.router = router;
        config = spread.config();
    }

    /** Loads each rank of a spread on its device. Throws what {@link Spread#load} throws. */
    static ParallelKernel load(Spread spread, Int8MoeOracle oracle, Int8Experts whole, Spread.Check check) {
        ParallelKernel kernel = new ParallelKernel(spread, whole.router());
        try {
            for (int rank = 0; rank < spread.ranks().size(); rank++) {
                int number = rank;
                kernel.add(() -> load(spread, number, oracle, whole, check));
            }
            return kernel;
        } catch (RuntimeException | Error failure) {
            kernel.closeAfter(failure);
            throw failure;
        }
    }

    private static MoeKernel load(
            Spread spread, int rank, Int8MoeOracle oracle, Int8Experts whole, Spread.Check check) {
        Selection selection = spread.ranks().get(rank);
        try (Int8Experts weights = spread.weights(rank, whole)) {
            MoeKernel kernel = oracle.makeInt8MoeKernel(selection, weights);
            try {
                check.check(kernel, selection.config(), weights);
                return kernel;
            } catch (RuntimeException | Error failure) {
                kernel.close();
                throw failure;
            }
        }
    }

    @Override
    public @Nullable MoeKernel lane() {
        ParallelKernel lane = new ParallelKernel(spread, router);
        try {
            for (Part part : parts) {
                if (!lane.add(() -> part.kernel.lane())) {
                    lane.close();
                    return null;
                }
            }
            return lane;
        } catch (RuntimeException | Error failure) {
            lane.closeAfter(failure);
            throw failure;
        }
    }

    /** The next device's part, made on its thread; false if that gave none. */
    private boolean add(Callable<@Nullable MoeKernel> make) {
        int rank = parts.size();
        int devices = spread.ranks().size();
        String device = spread.ranks().get(rank).device();
        DeviceThread thread = new DeviceThread(
                "moe-" + rank + " " + device, Runtime.getRuntime().availableProcessors() > 2 * devices);
        try {
            MoeKernel kernel = thread.await(thread.begin(make));
            if (kernel == null) {
                thread.close();
                return false;
            }
            parts.add(new Part(device, kernel, thread, arena.allocate(bytes(config.maxNumTokens()), 64)));
            return true;
        } catch (InsufficientMemoryException failure) {
            thread.close();
            throw failure;
        } catch (RuntimeException | Error failure) {
            thread.close();
            throw new MoeExecutionException(device + ": " + failure.getMessage(), failure);
        }
    }

    private long bytes(int tokens) {
        return (long) config.inDtype().bytes() * tokens * config.hiddenDim();
    }

    /** Asks every part the same, at the same time, and waits for all; what each answers, in their order. */
    private <T> List<T> each(Function<Part, T> question) {
        List<FutureTask<T>> tasks = new ArrayList<>();
        for (Part part : parts) {
            tasks.add(part.thread.begin(() -> question.apply(part)));
        }
        List<T> answers = new ArrayList<>();
        MoeExecutionException failed = null;
        for (int rank = 0; rank < parts.size(); rank++) {
            Part part = parts.get(rank);
            try {
                answers.add(part.thread.await(tasks.get(rank)));
            } catch (RuntimeException | Error failure) {
                MoeExecutionException named =
                        new MoeExecutionException(part.device + ": " + failure.getMessage(), failure);
                if (failed == null) {
                    failed = named;
                } else {
                    failed.addSuppressed(named);
                }
            }
        }
        if (failed != null) {
            throw failed;
        }
        return answers;
    }

    @Override
    public void forward(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        run(hidden, tokens, output, chosen, null);
    }

    @Override
    public void forward(
            MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen, int[] slotOfToken) {
        run(hidden, tokens, output, chosen, slotOfToken);
    }

    private void run(
            MemorySegment hidden,
            int tokens,
            MemorySegment output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken) {
        turn.lock();
        try {
            MemorySegment given = readable(hidden, tokens);
            ChosenExperts handed = handed(given, tokens, chosen);
            Part first = parts.getFirst();
            each(part -> {
                ChosenExperts told = handed != null ? handed : part == first ? chosen : null;
                if (slotOfToken == null) {
                    part.kernel.forward(given, tokens, part.output, told);
                } else {
                    part.kernel.forward(given, tokens, part.output, told, slotOfToken);
                }
                return part;
            });
            if (handed != null && chosen != null && handed != chosen) {
                System.arraycopy(handed.ids(), 0, chosen.ids(), 0, handed.ids().length);
                System.arraycopy(handed.weights(), 0, chosen.weights(), 0, handed.weights().length);
            }
            add(tokens, output);
        } finally {
            turn.unlock();
        }
    }

    /** The hidden states where the devices' threads may read them. */
    private MemorySegment readable(MemorySegment hidden, int tokens) {
        if (hidden.isAccessibleBy(parts.getFirst().thread.thread())) {
            return hidden;
        }
        if (input == null) {
            input = arena.allocate(bytes(config.maxNumTokens()), 64);
        }
        return input.copyFrom(hidden.asSlice(0, bytes(tokens)));
    }

    /** What the devices are to take for chosen: the caller's choice or, where they could differ, the host's; null for their own. */
    private @Nullable ChosenExperts handed(MemorySegment hidden, int tokens, @Nullable ChosenExperts chosen) {
        if (config.router().isHandedIn()) {
            return chosen;
        }
        if (!spread.isMixed()) {
            return null;
        }
        float[] x = new float[tokens * config.hiddenDim()];
        HiddenStates.read(config.inDtype(), hidden, x, x.length);
        Routing routing =
                Router.route(config, router, Router.logits(config, router, Reference.widen(x), tokens), tokens);
        float[] weights = new float[routing.weights().length];
        for (int p = 0; p < weights.length; p++) {
            weights[p] = (float) routing.weights()[p];
        }
        return new ChosenExperts(routing.topK(), routing.ids(), weights);
    }

    /** The output: the parts', in their order. */
    private void add(int tokens, MemorySegment output) {
        int values = tokens * config.hiddenDim();
        int tasks = Math.ceilDiv(values, CHUNK * CHUNKS_PER_TASK);
        if (tasks == 1 || !output.isAccessibleBy(parts.getFirst().thread.thread())) {
            add(0, values, output);
        } else {
            int each = Math.ceilDiv(values, tasks);
            IntStream.range(0, tasks)
                    .parallel()
                    .forEach(task -> add(task * each, Math.min(values, (task + 1) * each), output));
        }
    }

    private void add(int from, int to, MemorySegment output) {
        ScalarType type = config.inDtype();
        float[] sum = new float[Math.min(CHUNK, to - from)];
        float[] term = new float[sum.length];
        for (int at = from; at < to; at += CHUNK) {
            int count = Math.min(CHUNK, to - at);
            long offset = (long) type.bytes() * at;
            HiddenStates.read(type, parts.getFirst().output.asSlice(offset), sum, count);
            for (int rank = 1; rank < parts.size(); rank++) {
                HiddenStates.read(type, parts.get(rank).output.asSlice(offset), term, count);
                for (int i = 0; i < count; i++) {
                    sum[i] += term[i];
                }
            }
            HiddenStates.write(type, sum, count, output.asSlice(offset));
        }
    }

    /** What the slowest device took for each kernel. */
    @Override
    public Map<String, Long> profile(MemorySegment hidden, int tokens) {
        turn.lock();
        try {
            MemorySegment given = readable(hidden, tokens);
            return slowest(each(part -> part.kernel.profile(given, tokens)));
        } finally {
            turn.unlock();
        }
    }

    @Override
    public void timeStages() {
        parts.forEach(part -> part.kernel.timeStages());
    }

    @Override
    public Map<String, Long> stageTimes() {
        return slowest(parts.stream().map(part -> part.kernel.stageTimes()).toList());
    }

    private static Map<String, Long> slowest(List<Map<String, Long>> times) {
        Map<String, Long> slowest = new LinkedHashMap<>();
        times.forEach(of -> of.forEach((name, nanos) -> slowest.merge(name, nanos, Math::max)));
        return slowest;
    }

    /** If a device refuses it, none has it. */
    @Override
    public void setAdapter(int slot, @Nullable LoraAdapter adapter) {
        turn.lock();
        try {
            put(slot, adapter);
        } catch (RuntimeException | Error failure) {
            if (adapter != null) {
                put(slot, null);
            }
            throw failure;
        } finally {
            turn.unlock();
        }
    }

    private void put(int slot, @Nullable LoraAdapter adapter) {
        each(part -> {
            FusedMoeConfig rank = spread.ranks().get(parts.indexOf(part)).config();
            LoraAdapter own =
                    adapter == null || spread.isExpertParallel() ? adapter : RankWeights.columns(adapter, rank);
            part.kernel.setAdapter(slot, own);
            return part;
        });
    }

    @Override
    public String device() {
        return parts.stream().map(Part::device).collect(Collectors.joining(", "));
    }

    @Override
    public long deviceBytes() {
        return bytesByDevice().stream().mapToLong(Long::longValue).sum();
    }

    @Override
    public List<Long> bytesByDevice() {
        return parts.stream().map(part -> part.kernel.deviceBytes()).toList();
    }

    private void closeAfter(Throwable failure) {
        try {
            close();
        } catch (RuntimeException | Error second) {
            failure.addSuppressed(second);
        }
    }

    /** All parts, also those after one that fails. */
    @Override
    public void close() {
        try {
            each(part -> {
                part.kernel.close();
                return part;
            });
        } finally {
            parts.forEach(part -> part.thread.close());
            arena.close();
        }
    }
}
