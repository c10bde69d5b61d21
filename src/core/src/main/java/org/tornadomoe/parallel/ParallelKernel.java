package org.tornadomoe.parallel;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.Callable;
import java.util.concurrent.FutureTask;
import java.util.concurrent.locks.ReentrantLock;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.EplbConfig;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.config.ScalarType;
import org.tornadomoe.host.HostRouter;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.DeviceMemory;
import org.tornadomoe.kernel.InsufficientMemoryException;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.oracle.Int8MoeOracle;
import org.tornadomoe.oracle.Selection;
import org.tornadomoe.quant.HiddenStates;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.quant.LoraAdapter;
import org.tornadomoe.quant.RankWeights;

/**
 * One layer on several devices at the same time. Every device gets the hidden states and computes its part of the output, by a thread of its
 * own; the caller waits for all, and adds the parts in the order of the devices, in float, so that the same input gives the same bits. Of
 * hidden states of 16 bits the parts are rounded, and their sum.
 *
 * <p>Where the devices can bring the parts together themselves ({@link MoeKernel#joinedWith}) they do, from the second call on. In the first one they do both:
 * if the output isn't the same to the bit, or they fail at it, the host goes on adding.
 *
 * <p>A device that fails makes the call fail, with its name, when the others are through; nothing is written to the output then, and the next
 * call uses all devices again. Calls take turns; a {@link #lane} has threads and partial outputs of its own.
 *
 * <p>With load balancing experts move now and then. The devices whose experts change load them beside those that they have, on further threads, while calls
 * go on with the old ones; between two calls all change over, and the old ones are closed. Before, what that takes is compared with what the devices
 * have. Where it doesn't fit, or a device fails at it, everything stays as it was. There is one lane then.
 */
final class ParallelKernel implements MoeKernel {
    /** Values that are added at a time, few enough for a core's first cache. */
    private static final int CHUNK = 2048;

    /** Chunks that are worth another core. */
    private static final int CHUNKS_PER_TASK = 64;

    private static final System.Logger LOG = System.getLogger(ParallelKernel.class.getName());

    private final Spread spread;
    private final FusedMoeConfig config;
    private final @Nullable HostRouter router;
    private final @Nullable LoadBalancer balancer;
    private final @Nullable Loader loader;
    private final Arena arena = Arena.ofShared();
    private final ReentrantLock turn = new ReentrantLock(true);

    /** In the order of devices; changed when no call is under way. */
    private volatile List<Part> parts = List.of();

    /** What the devices do together; null where they don't, or not yet. */
    private volatile @Nullable MoeKernel joined;

    /** Whether it is known what {@link #joined} is of these parts. */
    private boolean isJoinTried;

    /** Moves experts while calls go on. */
    private @Nullable Thread mover;

    private volatile boolean timed;
    private volatile boolean closing;

    /** Where hidden states go that only their caller's thread may read. */
    private @Nullable MemorySegment input;

    /** What one device does of a layer: the partial output is [M, H]. */
    private record Part(int rank, String device, MoeKernel kernel, DeviceThread thread, MemorySegment output) {
        /** Closes it on its thread, and ends that. */
        void close() {
            try {
                thread.await(thread.begin(() -> {
                    kernel.close();
                    return kernel;
                }));
            } finally {
                thread.close();
            }
        }
    }

    /** Loads some experts on a device. */
    private record Loader(Spread spread, Int8MoeOracle oracle, Int8Experts whole, Spread.Check check) {
        MoeKernel load(int rank, int[] experts) {
            Selection selection = spread.with(rank, experts);
            try (Int8Experts weights = spread.weights(selection, whole, experts)) {
                MoeKernel kernel = oracle.makeInt8MoeKernel(selection, weights);
                try {
                    check.check(kernel, selection.config(), weights);
                    return kernel;
                } catch (RuntimeException | Error failure) {
                    Cleanup.after(failure, kernel::close);
                    throw failure;
                }
            }
        }

        /** What a device will take for some experts; as much as it takes for those that it has where that isn't told. */
        long bytes(int rank, int[] experts, Part before) {
            Selection selection = spread.with(rank, experts);
            DeviceMemory memory =
                    selection.experts().memory(selection.config(), whole.weightKey(), whole.activationKey());
            return memory == null ? before.kernel.deviceBytes() : memory.bytes();
        }
    }

    private ParallelKernel(
            Spread spread, @Nullable HostRouter router, @Nullable LoadBalancer balancer, @Nullable Loader loader) {
        this.spread = spread;
        this.router = router;
        this.balancer = balancer;
        this.loader = loader;
        config = spread.config();
    }

    /** Loads each rank of a spread on its device. Throws what {@link Spread#load} throws. */
    static ParallelKernel load(Spread spread, Int8MoeOracle oracle, Int8Experts whole, Spread.Check check) {
        EplbConfig eplb = spread.eplb();
        int devices = spread.ranks().size();
        FusedMoeConfig config = spread.config();
        Loader loader = new Loader(spread, oracle, whole, check);
        LoadBalancer balancer = eplb == null ? null : new LoadBalancer(eplb, config.globalNumExperts(), devices);
        ParallelKernel kernel = new ParallelKernel(
                spread,
                spread.isRoutedByHost() && !config.router().isHandedIn()
                        ? new HostRouter(config, whole.router())
                        : null,
                balancer,
                balancer == null ? null : loader);
        try {
            for (int rank = 0; rank < devices; rank++) {
                int number = rank;
                int[] experts = balancer == null
                        ? spread.experts(rank)
                        : balancer.placement().experts(rank);
                kernel.add(() -> loader.load(number, experts));
            }
            if (balancer != null) {
                kernel.place(balancer.placement());
            }
            return kernel;
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, kernel::close);
            throw failure;
        }
    }

    /** None where experts move: all lanes would have to change over at once. */
    @Override
    public @Nullable MoeKernel lane() {
        if (balancer != null) {
            return null;
        }
        ParallelKernel lane = new ParallelKernel(spread, router, null, null);
        try {
            for (Part part : parts) {
                if (!lane.add(() -> part.kernel.lane())) {
                    lane.close();
                    return null;
                }
            }
            return lane;
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, lane::close);
            throw failure;
        }
    }

    /** The next device's part, made on its thread; false if that gave none. */
    private boolean add(Callable<@Nullable MoeKernel> make) {
        Part part = start(parts.size(), arena.allocate(bytes(config.maxNumTokens()), 64), make);
        if (part == null) {
            return false;
        }
        List<Part> all = new ArrayList<>(parts);
        all.add(part);
        parts = List.copyOf(all);
        return true;
    }

    /** A device's part, made on a new thread; null if that gave none. */
    private @Nullable Part start(int rank, MemorySegment output, Callable<@Nullable MoeKernel> make) {
        int devices = spread.ranks().size();
        String device = spread.ranks().get(rank).device();
        DeviceThread thread = new DeviceThread(
                "moe-" + rank + " " + device, Runtime.getRuntime().availableProcessors() > 2 * devices);
        try {
            MoeKernel kernel = thread.await(thread.begin(make));
            if (kernel == null) {
                thread.close();
                return null;
            }
            return new Part(rank, device, kernel, thread, output);
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
        List<Part> parts = this.parts;
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
            MoeKernel together = joined;
            if (together != null && slotOfToken == null && !timed) {
                together.forward(given, tokens, output, handed != null ? handed : chosen);
            } else {
                each(part -> {
                    // What comes back of the experts chosen, from the first device.
                    ChosenExperts told = handed != null ? handed : part.rank == 0 ? chosen : null;
                    if (slotOfToken == null) {
                        part.kernel.forward(given, tokens, part.output, told);
                    } else {
                        part.kernel.forward(given, tokens, part.output, told, slotOfToken);
                    }
                    return part;
                });
                add(tokens, output);
                if (!isJoinTried && slotOfToken == null) {
                    join(given, tokens, output, handed);
                }
            }
            if (handed != null && chosen != null && handed != chosen) {
                System.arraycopy(handed.ids(), 0, chosen.ids(), 0, handed.ids().length);
                System.arraycopy(handed.weights(), 0, chosen.weights(), 0, handed.weights().length);
            }
            if (balancer != null
                    && balancer.passed(parts.stream()
                            .map(part -> part.kernel.expertLoads())
                            .toList())) {
                rearrange(balancer);
            }
        } finally {
            turn.unlock();
        }
    }

    /** Has the devices bring the parts of the output together themselves, if they can and what comes of it is the output to the bit. */
    private void join(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts handed) {
        isJoinTried = true;
        MoeKernel together = null;
        Throwable why = null;
        try (Arena once = Arena.ofConfined()) {
            together = parts.getFirst()
                    .kernel
                    .joinedWith(parts.stream().skip(1).map(part -> part.kernel).toList());
            if (together == null) {
                return;
            }
            MemorySegment sum = once.allocate(bytes(tokens), 64);
            together.forward(hidden, tokens, sum, handed);
            if (sum.mismatch(output.asSlice(0, sum.byteSize())) == -1) {
                joined = together;
                return;
            }
            why = new MoeExecutionException("their sum differs from the host's");
        } catch (RuntimeException | Error failure) {
            why = failure;
        }
        if (together != null) {
            Cleanup.after(why, together::close);
        }
        if (why instanceof VirtualMachineError error) {
            throw error;
        }
        LOG.log(System.Logger.Level.WARNING, "the host adds what the devices compute: " + why.getMessage());
        LOG.log(System.Logger.Level.DEBUG, "the devices' own sum", why);
    }

    /** Before parts are replaced or closed. */
    private void separate() {
        MoeKernel together = joined;
        joined = null;
        isJoinTried = false;
        if (together != null) {
            together.close();
        }
    }

    // ---- experts that move

    /** Now, or while calls go on; not while experts are moving. */
    private void rearrange(LoadBalancer balancer) {
        long[] load = balancer.window();
        ExpertPlacement before = balancer.placement();
        if (!balancer.config().useAsync()) {
            rearrange(balancer, before, load);
        } else if (mover == null || !mover.isAlive()) {
            mover = Thread.ofPlatform().name("moe-eplb").daemon().start(() -> rearrange(balancer, before, load));
        }
    }

    /** Whatever fails leaves the placement as it was. */
    private void rearrange(LoadBalancer balancer, ExpertPlacement before, long[] load) {
        List<Part> loaded = new ArrayList<>();
        List<Part> unused = loaded;
        String why = null;
        try {
            ExpertPlacement after = EplbPolicy.next(before, load);
            if (after.imbalance(load) < before.imbalance(load)) {
                why = shortage(before, after);
                if (why == null) {
                    load(before, after, loaded);
                    unused = changeOver(balancer, after, loaded);
                }
            }
        } catch (RuntimeException | Error failure) {
            why = String.valueOf(failure.getMessage());
            LOG.log(System.Logger.Level.DEBUG, "experts could not be moved", failure);
        } finally {
            closeAll(unused);
        }
        String reason = why;
        if (reason != null) {
            LOG.log(System.Logger.Level.WARNING, "experts stay where they are: " + reason);
        }
        if (unused == loaded) {
            turn.lock();
            try {
                balancer.stayed(reason);
            } finally {
                turn.unlock();
            }
        }
    }

    /** Why the devices can't have the experts that come beside those that go; null if they can. */
    private @Nullable String shortage(ExpertPlacement before, ExpertPlacement after) {
        Loader loader = Objects.requireNonNull(this.loader);
        Map<String, Long> held = new LinkedHashMap<>();
        Map<String, Long> coming = new LinkedHashMap<>();
        for (Part part : parts) {
            held.merge(part.device, part.kernel.deviceBytes(), Long::sum);
            if (!before.sameExperts(after, part.rank)) {
                coming.merge(part.device, loader.bytes(part.rank, after.experts(part.rank), part), Long::sum);
            }
        }
        for (Selection rank : spread.ranks()) {
            long limit = rank.experts().memoryLimit(rank.config());
            long there = held.getOrDefault(rank.device(), 0L);
            long more = coming.getOrDefault(rank.device(), 0L);
            if (more > limit - there) {
                return String.format(
                        Locale.ROOT,
                        "%s would need %,d bytes of memory while they move, %,d for those that come beside %,d, and"
                                + " has %,d",
                        rank.device(),
                        there + more,
                        more,
                        there,
                        limit);
            }
        }
        return null;
    }

    /** Loads what changes, one device after the other. */
    private void load(ExpertPlacement before, ExpertPlacement after, List<Part> into) {
        Loader loader = Objects.requireNonNull(this.loader);
        for (Part part : parts) {
            if (!closing && !before.sameExperts(after, part.rank)) {
                Part fresh = start(part.rank, part.output, () -> loader.load(part.rank, after.experts(part.rank)));
                into.add(Objects.requireNonNull(fresh));
            }
        }
    }

    /** Puts parts in the place of those before, between two calls; which are to be closed now. */
    private List<Part> changeOver(LoadBalancer balancer, ExpertPlacement after, List<Part> loaded) {
        turn.lock();
        try {
            if (closing) {
                return loaded;
            }
            separate();
            List<Part> all = new ArrayList<>(parts);
            List<Part> replaced = new ArrayList<>();
            for (Part part : loaded) {
                if (timed) {
                    part.kernel.timeStages();
                }
                replaced.add(all.set(part.rank, part));
            }
            List<Part> before = parts;
            parts = List.copyOf(all);
            try {
                place(after);
            } catch (RuntimeException | Error failure) {
                parts = before;
                Cleanup.after(failure, () -> place(balancer.placement()));
                throw failure;
            }
            balancer.moved(after);
            return replaced;
        } finally {
            turn.unlock();
        }
    }

    /** Tells each device which pairs are its own; also those whose experts stay, since other devices may have copies of them now. */
    private void place(ExpertPlacement placement) {
        parts.forEach(part -> part.kernel.setReplicas(placement.replicas(part.rank)));
    }

    /** All, also those after one that fails. */
    private static void closeAll(List<Part> parts) {
        for (Part part : parts) {
            try {
                part.close();
            } catch (RuntimeException | Error failure) {
                LOG.log(System.Logger.Level.WARNING, "closing what experts moved from, on " + part.device, failure);
            }
        }
    }

    /** How the experts lie; null if they don't move. */
    @Nullable
    ExpertBalance balance() {
        turn.lock();
        try {
            return balancer == null ? null : balancer.balance();
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
        if (router == null) {
            return null;
        }
        float[] x = new float[tokens * config.hiddenDim()];
        HiddenStates.read(config.inDtype(), hidden, x, x.length);
        return router.routeOnAllCores(x, tokens);
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
        timed = true;
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
                Cleanup.after(failure, () -> put(slot, null));
            }
            throw failure;
        } finally {
            turn.unlock();
        }
    }

    private void put(int slot, @Nullable LoraAdapter adapter) {
        each(part -> {
            FusedMoeConfig rank = spread.ranks().get(part.rank).config();
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
        MoeKernel together = joined;
        return parts.stream()
                .map(part ->
                        part.kernel.deviceBytes() + (part.rank == 0 && together != null ? together.deviceBytes() : 0))
                .toList();
    }

    /** All parts, also those after one that fails; after experts that are moving, which stop at the next device. */
    @Override
    public void close() {
        closing = true;
        if (mover != null) {
            DeviceThread.awaitEnd(mover);
        }
        Cleanup.all(
                this::separate,
                () -> each(part -> {
                    part.kernel.close();
                    return part;
                }),
                () -> Cleanup.each(parts, part -> part.thread.close()),
                arena::close);
    }
}
