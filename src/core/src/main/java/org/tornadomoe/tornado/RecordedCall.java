package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import java.util.function.IntConsumer;
import java.util.stream.IntStream;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.cuda.CudaStep;
import org.tornadomoe.tornado.cuda.CudaTask;
import org.tornadomoe.tornado.device.CudaDriver;
import org.tornadomoe.tornado.kernels.KernelSource;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Calls of very few tokens, for which launches, copies and events one by one take longer than the kernels: one graph
 * per GPU, recorded for each number of tokens. Kernels read the hidden states from the host's memory and write the
 * output there. Of several GPUs each reads all tokens; the others write their parts into the first one's memory and
 * then their call's number, for which the first one waits before it adds.
 *
 * <p>It doesn't wait for ever: the host waits for the others first, and then tells it that they are through, even if
 * they have failed. GPUs wait only for GPUs with a higher number, or for work that the host gave them earlier, so
 * several layers can't wait for one another in a circle.
 *
 * <p>Not thread-safe: one thread at a time.
 */
final class RecordedCall implements AutoCloseable {
    /** The maximum number of bytes of hidden states. */
    static final long MOST_BYTES = HostCopies.LEAST;

    private static final int PAGE = 4096;
    private static final int GROUP = 256;
    private static final int MOST_GRAPHS = 64;
    private static final int HEADER_BYTES = 64;

    /**
     * The maximum number of groups that wait for other GPUs, also in multiprocessors per group: what they wait for must
     * find room beside them if it runs on the same GPU.
     */
    private static final int MOST_WAITING = 16;

    private static final int ROOM = 4;

    /** Where the host says whose number of calls is over, on a cache line of its own. */
    private static final long THROUGH = 64;

    /** Where on a GPU the parts' numbers of calls begin, behind its own. */
    private static final long FLAGS = 64;

    private final List<Gpu> gpus = new ArrayList<>();
    private final CudaDriver driver;
    private final CudaObjects objects;

    /** Whether each GPU has one part. */
    private final boolean apart;

    private final Consumer<IntConsumer> together;

    /** The number of this call, and at {@link #THROUGH} that of the last one in which the other GPUs are through. */
    private final MemorySegment numbers;

    private int number;

    /**
     * Prepares calls of parts that it {@linkplain #serves}.
     *
     * @param together runs something for each part's rank, at the same time if threads are free
     * @throws MoeExecutionException if the driver refuses
     */
    RecordedCall(List<CudaPart> parts, CudaDriver driver, Consumer<IntConsumer> together) {
        this.driver = driver;
        this.together = together;
        objects = new CudaObjects(driver);
        numbers = objects.arena().allocate(PAGE, PAGE);
        apart = Arrays.stream(devices(parts, driver)).distinct().count() == parts.size();
        try {
            parts.forEach(part -> part.run(() -> gpus.add(new Gpu(part, parts.getFirst(), parts.size()))));
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, this::close);
            throw failure;
        }
    }

    /** Whether calls of parts, which have met, can be recorded as far as is known before it is tried. */
    static boolean serves(List<CudaPart> parts, CudaDriver driver) {
        if (!driver.recordsGraphs() || !parts.stream().allMatch(RecordedCall::passesOnlyHiddenStates)) {
            return false;
        }
        int[] devices = devices(parts, driver);
        return IntStream.range(1, devices.length).allMatch(i -> devices[i - 1] <= devices[i]);
    }

    /** Whether nothing but hidden states and output crosses, and no kernel reads the output. */
    private static boolean passesOnlyHiddenStates(CudaPart part) {
        Object outgoing = part.arrays.work.outgoing();
        return part.arrays.shape.routes
                && !part.arrays.shape.balanced
                && part.replay().steps().stream()
                        .noneMatch(step -> step.updates().contains(outgoing)
                                || (step.reads().contains(outgoing) && !(step instanceof CudaStep.Copy)));
    }

    private static int[] devices(List<CudaPart> parts, CudaDriver driver) {
        return parts.stream()
                .mapToInt(part -> {
                    driver.setContext(part.context);
                    return driver.currentDevice();
                })
                .toArray();
    }

    /**
     * Records calls of so many tokens if they aren't; the next call must have as many.
     *
     * @throws MoeExecutionException if the driver refuses; then nothing runs
     */
    void record(int tokens) {
        gpus.forEach(gpu -> on(gpu, _ -> gpu.record(tokens)));
    }

    /**
     * Runs the layer.
     *
     * @throws MoeExecutionException whose message begins with the device's name if there are several devices
     */
    void forward(MemorySegment hidden, int tokens, MemorySegment output) {
        Gpu first = gpus.getFirst();
        long bytes = tokens * first.row;
        MemorySegment.copy(hidden, 0, first.incoming.getSegment(), 0, bytes);
        number++;
        numbers.set(ValueLayout.JAVA_INT, 0, number);
        try {
            Cleanup.all(this::launch, this::await);
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, this::await); // nothing may run when the arrays are used again
            throw failure;
        }
        MemorySegment.copy(first.outgoing.getSegment(), 0, output, 0, bytes);
    }

    /** On one GPU the part that waits comes last. */
    private void launch() {
        if (apart && gpus.size() > 1) {
            together.accept(rank -> on(gpus.get(rank), Gpu::launch));
        } else {
            Cleanup.each(gpus.reversed(), gpu -> on(gpu, Gpu::launch));
        }
    }

    private void await() {
        Gpu first = gpus.getFirst();
        Cleanup.all(
                () -> Cleanup.each(
                        gpus.subList(1, gpus.size()),
                        gpu -> on(gpu, _ -> gpu.replay().await())),
                () -> numbers.set(ValueLayout.JAVA_INT, THROUGH, number),
                () -> on(first, _ -> first.replay().await()));
    }

    private static void on(Gpu gpu, Consumer<Gpu> what) {
        gpu.part.run(() -> what.accept(gpu));
    }

    @Override
    public void close() {
        Cleanup.all(() -> Cleanup.each(gpus, gpu -> on(gpu, Gpu::destroyGraphs)), objects::close);
    }

    /** A part's graphs and what they use on its GPU. Its methods run in the part's context. */
    private final class Gpu {
        final CudaPart part;

        /** Bytes of a token's hidden states, and of its output. */
        final long row;

        final TornadoNativeArray incoming;
        final TornadoNativeArray outgoing;

        private final int device;

        /** Whether kernels may be launched before the previous ones have ended. */
        private final boolean early;

        private final long takes;
        private final long tells;
        private final long sums;

        /**
         * Addresses for this GPU of the host's memory: {@link #numbers}, and what all read and the first one writes.
         */
        private final long hostNumbers;

        private final long hostIncoming;
        private final long hostOutgoing;

        /** On the device: the number of this call, and from {@link #FLAGS} on each part's. */
        private final long counts;

        /**
         * On the device: each graph's header, {@link #HEADER_BYTES} each. Kernels may read it before the hidden states
         * have come, so it is there before the graph, and stays.
         */
        private final long headers;

        /** On the first device: the other parts of the output, {@link #MOST_BYTES} each. */
        private final long others;

        private final Map<Integer, Long> graphs = new HashMap<>();
        private long graph;

        Gpu(CudaPart part, CudaPart first, int count) {
            this.part = part;
            row = (long) part.arrays.shape.config.inDtype().bytes() * part.arrays.shape.config.hiddenDim();
            incoming = part.arrays.work.incoming();
            outgoing = part.arrays.work.outgoing();
            device = driver.currentDevice();
            int capability = driver.computeCapability(device);
            early = capability >= CudaDriver.EARLY_LAUNCHES;
            byte[] binary = driver.compile(KernelSource.text("join.cu"), List.of(CudaDriver.architecture(capability)));
            long module = objects.take(part.context, () -> driver.loadModule(binary), driver::unloadModule);
            takes = driver.function(module, "take");
            tells = driver.function(module, "tell");
            sums = driver.function(module, "sum");
            objects.pin(part.context, numbers);
            hostNumbers = driver.addressOfPinned(numbers);
            hostIncoming = atHost(first.arrays.work.incoming());
            hostOutgoing = atHost(first.arrays.work.outgoing());
            counts = allocate(PAGE);
            driver.clear(counts, PAGE, replay().stream());
            replay().await();
            headers = allocate(MOST_GRAPHS * HEADER_BYTES);
            others = part.rank > 0 || count == 1 ? 0 : allocate((count - 1) * MOST_BYTES);
        }

        private long allocate(long bytes) {
            return objects.take(part.context, () -> driver.allocate(bytes), driver::free);
        }

        CudaTask.Replay replay() {
            return part.replay();
        }

        /** Makes the graph of a call of so many tokens the next one to launch. */
        void record(int tokens) {
            part.arrays.setTokens(tokens);
            replay().begin();
            Long known = graphs.get(tokens);
            if (known == null) {
                if (graphs.size() == MOST_GRAPHS) {
                    destroyGraphs();
                }
                known = recorded(tokens);
                graphs.put(tokens, known);
            }
            graph = known;
        }

        void destroyGraphs() {
            List<Long> old = List.copyOf(graphs.values());
            graphs.clear();
            Cleanup.each(old, driver::destroyGraph);
        }

        private long recorded(int tokens) {
            long stream = replay().stream();
            long header = headers + (long) graphs.size() * HEADER_BYTES;
            MemorySegment values = part.arrays.work.header.getSegment();
            driver.copyToDevice(header, values, values.byteSize(), stream);
            replay().await();
            driver.beginRecording(stream);
            try {
                enqueue(header, Math.ceilDiv(tokens * row, 4));
            } catch (RuntimeException | Error failure) {
                Cleanup.after(failure, () -> driver.destroyGraph(driver.endRecording(stream)));
                throw failure;
            }
            return driver.endRecording(stream);
        }

        /** Enqueues a call with a header, of so many ints of hidden states. */
        private void enqueue(long header, long ints) {
            Gpu first = gpus.getFirst();
            boolean alone = gpus.size() == 1;
            launch(
                    takes,
                    Math.ceilDiv(ints, 4 * GROUP),
                    GROUP,
                    hostNumbers,
                    hostIncoming,
                    counts,
                    replay().address(incoming),
                    ints);
            long to = alone
                    ? hostOutgoing
                    : part.rank == 0 ? replay().address(outgoing) : first.others + (part.rank - 1) * MOST_BYTES;
            IdentityHashMap<Object, Long> elsewhere = new IdentityHashMap<>();
            elsewhere.put(part.arrays.work.header, header);
            elsewhere.put(outgoing, to);
            List<CudaStep> steps = replay().steps();
            for (int step = 0; step < steps.size(); step++) {
                if (!(steps.get(step) instanceof CudaStep.Copy)) {
                    replay().enqueue(step, elsewhere);
                }
            }
            if (part.rank > 0) {
                launch(tells, 1, 1, first.counts + FLAGS + 4L * part.rank, counts);
            } else if (!alone) {
                int most = Math.clamp(driver.multiprocessors(device) / ROOM, 1, MOST_WAITING);
                launch(
                        sums,
                        Math.min(most, Math.ceilDiv(ints, 4 * GROUP)),
                        GROUP,
                        to,
                        others,
                        counts,
                        counts + FLAGS,
                        hostNumbers + THROUGH,
                        hostOutgoing,
                        MOST_BYTES / 4,
                        ints,
                        gpus.size(),
                        switch (part.arrays.shape.config.inDtype()) {
                            case F16 -> 1;
                            case BF16 -> 2;
                            default -> 0;
                        });
            }
        }

        /** The address for this GPU of an array's memory at the host, which is pinned. */
        private long atHost(TornadoNativeArray array) {
            MemorySegment whole = array.getSegmentWithHeader();
            return driver.addressOfPinned(whole) + array.getSegment().address() - whole.address();
        }

        private void launch(long function, long groups, int group, long... arguments) {
            try (Arena once = Arena.ofConfined()) {
                MemorySegment values = once.allocateFrom(ValueLayout.JAVA_LONG, arguments);
                MemorySegment pointers = once.allocate(ValueLayout.ADDRESS, arguments.length);
                for (int i = 0; i < arguments.length; i++) {
                    pointers.setAtIndex(ValueLayout.ADDRESS, i, values.asSlice(8L * i));
                }
                MemorySegment how = CudaDriver.allocateLaunch(once);
                CudaDriver.fillLaunch(how, Math.toIntExact(groups), 1, group, 0, replay().stream());
                if (!early) {
                    CudaDriver.startAlone(how);
                }
                driver.launch(how, function, pointers);
            }
        }

        void launch() {
            driver.launchGraph(graph, replay().stream());
        }
    }
}
