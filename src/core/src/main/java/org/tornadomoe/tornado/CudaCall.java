package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Deque;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Consumer;
import java.util.function.LongConsumer;
import java.util.function.LongSupplier;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.host.Scratch;
import org.tornadomoe.host.Team;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.HostCopies.Piece;
import org.tornadomoe.tornado.cuda.CudaStep;
import org.tornadomoe.tornado.cuda.CudaTask;
import org.tornadomoe.tornado.device.CudaDriver;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.kernels.KernelSource;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Calls of a layer on one CUDA GPU, or of its parts on several, in which copies and kernels overlap. The calling thread
 * enqueues everything on streams, and the GPUs wait for one another.
 *
 * <p>Tokens are processed in chunks: while the kernels compute one, the next one arrives and the output of the one
 * before leaves. With several GPUs, each reads its share of a chunk's tokens over its own link to the host, and they
 * exchange what they have read. Each computes its part of the output, adds all parts of its share, in the order of the
 * GPUs, and writes the sum back. With few tokens each GPU reads all of them, and the first one adds and writes.
 *
 * <p>A token's bits don't depend on its chunk; where they could, there is one chunk. Not thread-safe: one thread at a
 * time.
 */
final class CudaCall implements AutoCloseable {
    /** The maximum number of parts that {@code join.cu} adds. */
    static final int MOST_PARTS = 8;

    /** Up to this many bytes of hidden states nothing overlaps, and each of several GPUs reads all of them. */
    private static final long FEW = 1 << 20;

    /** The minimum number of tokens of a call in chunks; a chunk's tokens are a multiple of the next constant. */
    private static final int MANY_TOKENS = 1024;

    private static final int CHUNK_TOKENS = 128;
    private static final int CHUNKS = 3;

    /** About how many times faster a GPU reads its own memory than the host's. */
    private static final long MEMORY_BY_LINK = 64;

    private static final int PAGE = 4096;
    private static final int HEADER_BYTES = 64;
    private static final int GROUP = 256;

    /**
     * Parameters of the kernel that adds: the parts, its rank, the number of parts, the first int, and the number of
     * ints.
     */
    private static final int PARAMETERS = MOST_PARTS + 4;

    private static final System.Logger LOG = System.getLogger(CudaCall.class.getName());

    private final List<Gpu> gpus = new ArrayList<>();
    private final CudaDriver driver;
    private final Arena arena = Arena.ofShared();

    /** Releases the driver's objects, the last one first. */
    private final Deque<Runnable> taken = new ArrayDeque<>();

    /** Bytes of a token's hidden states, and of its output. */
    private final long row;

    /**
     * Enqueues calls of few tokens with one thread per GPU, because enqueueing alone takes as long as some GPUs' work.
     */
    private final Team team;

    private final Scratch scratch = new Scratch();

    /** Makes a call for parts that have run once; the caller must own them during every call. */
    CudaCall(List<TornadoMoeKernel> parts) {
        this(parts, new Team(parts.size()));
    }

    CudaCall(List<TornadoMoeKernel> parts, Team team) {
        this.team = team;
        LayerArrays first = parts.getFirst().arrays();
        row = (long) first.shape.config.inDtype().bytes() * first.shape.config.hiddenDim();
        driver = parts.getFirst().replay().driver();
        try {
            taken.push(arena::close);
            for (TornadoMoeKernel part : parts) {
                gpus.add(new Gpu(gpus.size(), part));
            }
            if (parts.size() > 1) {
                gpus.forEach(Gpu::meetOthers);
            }
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, this::close);
            throw failure;
        }
    }

    /** Takes an object of a context; {@link #close} releases it. */
    private long take(long context, LongSupplier take, LongConsumer giveBack) {
        driver.setContext(context);
        long handle = take.getAsLong();
        taken.push(() -> {
            driver.setContext(context);
            giveBack.accept(handle);
        });
        return handle;
    }

    /** Tokens that the kernels compute together, {@code from} inclusive, {@code to} exclusive. */
    private record Chunk(int number, int from, int to) {
        int tokens() {
            return to - from;
        }
    }

    /**
     * A call's memory; whether GPUs copy from and to the caller's memory themselves, and whether there are few tokens.
     */
    private record Memory(
            MemorySegment hidden, boolean isHiddenPinned, MemorySegment output, boolean isOutputPinned, boolean few) {}

    /** The tokens of a chunk that a GPU reads and writes, in pieces. */
    private record Share(Gpu gpu, Chunk chunk, int from, int to, List<Piece> in, List<Piece> out) {
        boolean isNone() {
            return from == to;
        }
    }

    /**
     * Runs the layer.
     *
     * @param chosen receives the first part's choice, or passes the choice in
     * @throws MoeExecutionException whose message begins with the device's name if there are several devices
     */
    void forward(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        Gpu first = gpus.getFirst();
        boolean answers = chosen != null && first.arrays.shape.routes;
        long bytes = tokens * row;
        // Otherwise one chunk's output would overwrite the next chunk's hidden states.
        boolean apart = hidden.address() == output.address()
                || hidden.asOverlappingSlice(output).isEmpty();
        Memory memory = new Memory(
                hidden,
                apart && PinnedMemory.isPinned(hidden.asSlice(0, bytes), driver, first.context),
                output,
                apart && PinnedMemory.isPinned(output.asSlice(0, bytes), driver, first.context),
                bytes <= FEW);
        for (Gpu gpu : gpus) {
            gpu.part.prepare(tokens, chosen, answers && gpu == first);
        }
        try (HostCopies in = new HostCopies(hidden);
                HostCopies out = new HostCopies(output)) {
            Cleanup.all(
                    () -> {
                        List<List<Share>> chunks = shares(memory, tokens, in, out);
                        if (!memory.isHiddenPinned) {
                            chunks.forEach(shares -> shares.forEach(share -> share.in.forEach(Piece::begin)));
                        }
                        for (List<Share> shares : chunks) {
                            if (memory.few) {
                                startAll(shares.getFirst(), memory);
                            } else {
                                bring(shares, memory);
                                compute(shares.getFirst().chunk);
                            }
                            fetch(shares, memory);
                        }
                        if (!memory.isOutputPinned) {
                            receiveAll(chunks, memory);
                        }
                        if (answers || first.arrays.shape.balanced) {
                            // Copies to memory that isn't pinned, so the driver may make the host wait.
                            each(gpu -> gpu.fetchRest(tokens));
                        }
                        if (!memory.isOutputPinned) {
                            chunks.forEach(shares -> shares.forEach(share -> share.out.forEach(Piece::await)));
                        }
                    },
                    () -> awaitAll(memory));
        }
        if (chosen != null && answers) {
            first.part.answer(chosen, tokens * first.arrays.shape.config.pairsPerToken());
        }
    }

    /**
     * The shares of each chunk, in the order of the GPUs. Each has an even number of tokens, so that two shares never
     * have an int in common.
     */
    private List<List<Share>> shares(Memory memory, int tokens, HostCopies in, HostCopies out) {
        long piece = HostCopies.pieceOf(tokens * row);
        List<List<Share>> chunks = new ArrayList<>();
        for (Chunk chunk : memory.few ? List.of(new Chunk(0, 0, tokens)) : chunks(tokens)) {
            List<Share> shares = new ArrayList<>();
            int pairs = Math.ceilDiv(chunk.tokens(), 2);
            int from = chunk.from;
            for (Gpu gpu : gpus) {
                int to = memory.few
                        ? chunk.to
                        : Math.min(chunk.to, chunk.from + pairs * (gpu.rank + 1) / gpus.size() * 2);
                long begin = from * row;
                long end = to * row;
                MemorySegment incoming = gpu.incoming.getSegment();
                MemorySegment outgoing = gpu.outgoing.getSegment();
                shares.add(new Share(
                        gpu,
                        chunk,
                        from,
                        to,
                        memory.isHiddenPinned
                                ? in.pieces(memory.hidden, memory.hidden, begin, end, end - begin)
                                : in.pieces(memory.hidden, incoming, begin, end, piece),
                        memory.isOutputPinned
                                ? out.pieces(memory.output, memory.output, begin, end, end - begin)
                                : out.pieces(outgoing, memory.output, begin, end, piece)));
                from = to;
            }
            chunks.add(shares);
        }
        return chunks;
    }

    private List<Chunk> chunks(int tokens) {
        LayerArrays arrays = gpus.getFirst().arrays;
        int edge = tokens / 4 / CHUNK_TOKENS * CHUNK_TOKENS;
        boolean whole = tokens < MANY_TOKENS
                // a token's position in the call determines which copy of an expert it uses
                || arrays.shape.balanced
                // one scale for all tokens of the call
                || (arrays.shape.scheme == Int8Scheme.W8A8_TENSOR && !arrays.staticScales)
                || gpus.stream()
                        .anyMatch(gpu -> !gpu.arrays.isLaunchedAlike(edge, tokens)
                                || !gpu.arrays.isLaunchedAlike(tokens - 2 * edge, tokens));
        // Each further chunk reads the weights once more; meanwhile three quarters of the copies are done.
        long more = (CHUNKS - 1) * arrays.expertBytes();
        long less = tokens * row * 3 / 2 / gpus.size() * MEMORY_BY_LINK;
        return whole || more > less
                ? List.of(new Chunk(0, 0, tokens))
                : List.of(
                        new Chunk(0, 0, edge), new Chunk(1, edge, tokens - edge), new Chunk(2, tokens - edge, tokens));
    }

    /**
     * All GPUs read the tokens that the first one has in the host's memory, and compute. Each uses one stream, which
     * its own thread fills if the thread is free.
     */
    private void startAll(Share all, Memory memory) {
        if (!memory.isHiddenPinned) {
            all.in.forEach(Piece::await);
        }
        @Nullable RuntimeException[] failures = new @Nullable RuntimeException[gpus.size()];
        boolean together = team.begin();
        try {
            team.run(
                    together,
                    gpus.size(),
                    (rank, _) -> {
                        try {
                            on(gpus.get(rank), gpu -> gpu.start(all));
                        } catch (RuntimeException failure) {
                            failures[rank] = failure;
                        }
                    },
                    scratch);
        } finally {
            if (together) {
                team.end();
            }
        }
        Cleanup.each(Arrays.asList(failures), failure -> {
            if (failure != null) {
                throw failure;
            }
        });
    }

    /** Each GPU reads its share, one piece per GPU in turn, and takes the others' shares as soon as they have them. */
    private void bring(List<Share> shares, Memory memory) {
        Chunk chunk = shares.getFirst().chunk;
        int most = shares.stream().mapToInt(share -> share.in.size()).max().orElse(0);
        for (int i = 0; i < most; i++) {
            for (Share share : shares) {
                if (i < share.in.size()) {
                    Piece piece = share.in.get(i);
                    if (!memory.isHiddenPinned) {
                        piece.await();
                    }
                    on(share.gpu, gpu -> gpu.take(piece, gpu.in));
                }
            }
        }
        each(gpu -> driver.record(gpu.arrived[chunk.number], gpu.in));
        if (gpus.size() > 1) {
            each(gpu -> {
                for (int i = 1; i < gpus.size(); i++) { // starts with the next GPU, so that not all ask the same one
                    gpu.take(shares.get((gpu.rank + i) % gpus.size()));
                }
                driver.record(gpu.gathered[chunk.number], gpu.exchange);
            });
        }
        each(gpu -> {
            gpu.begin(chunk);
            driver.waitFor(gpu.arrived[chunk.number], gpu.replay().stream());
            if (gpus.size() > 1) {
                driver.waitFor(gpu.gathered[chunk.number], gpu.replay().stream());
            }
        });
    }

    /**
     * Enqueues a chunk's kernels, for all GPUs in turn, so that none waits until the host has finished with another.
     */
    private void compute(Chunk chunk) {
        int most =
                gpus.stream().mapToInt(gpu -> gpu.replay().steps().size()).max().orElse(0);
        for (int i = 0; i < most; i++) {
            for (Gpu gpu : gpus) {
                int step = i;
                if (step < gpu.replay().steps().size() && gpu.isForKernels(step)) {
                    on(gpu, _ -> gpu.replay().enqueue(step, chunk.from));
                }
            }
        }
        each(gpu -> driver.record(gpu.computed[chunk.number], gpu.replay().stream()));
    }

    /** Each GPU adds the parts of its share; then the share goes to the host. */
    private void fetch(List<Share> shares, Memory memory) {
        for (Share share : shares) {
            if (gpus.size() > 1 && !share.isNone()) {
                on(share.gpu, gpu -> gpu.add(share));
            }
        }
        for (Share share : shares) {
            if (!share.isNone()) {
                on(share.gpu, gpu -> gpu.fetch(share, memory));
            }
        }
    }

    /** Receives all chunks. If several GPUs fail, it reports first the one that the others waited for. */
    private void receiveAll(List<List<Share>> chunks, Memory memory) {
        try {
            chunks.forEach(shares -> receive(shares, memory));
        } catch (MoeExecutionException failure) {
            try {
                awaitAll(memory);
            } catch (MoeExecutionException cause) {
                cause.addSuppressed(failure);
                throw cause;
            }
            throw failure;
        }
    }

    /** Copies what has come from the GPUs to the caller, one piece per GPU in turn. */
    private void receive(List<Share> shares, Memory memory) {
        int most = shares.stream().mapToInt(share -> share.out.size()).max().orElse(0);
        for (int i = 0; i < most; i++) {
            for (Share share : shares) {
                if (i < share.out.size()) {
                    Piece piece = share.out.get(i);
                    on(share.gpu, gpu -> {
                        if (memory.few && share.out.size() == 1) {
                            gpu.replay().await();
                        } else {
                            driver.awaitEvent(gpu.fetched(piece));
                        }
                    });
                    piece.begin();
                }
            }
        }
    }

    private void each(Consumer<Gpu> what) {
        gpus.forEach(gpu -> on(gpu, what));
    }

    /** Runs something in a GPU's context. If there are several GPUs, failures are reported with the GPU's name. */
    private void on(Gpu gpu, Consumer<Gpu> what) {
        try {
            driver.setContext(gpu.context);
            what.accept(gpu);
        } catch (MoeExecutionException failure) {
            throw gpus.size() == 1
                    ? failure
                    : new MoeExecutionException(gpu.part.device() + ": " + failure.getMessage(), failure);
        }
    }

    /**
     * Waits for all GPUs, whatever happened, because nothing may run when the arrays are used again. The first device
     * waits for the others and may fail because of them, so it comes last.
     */
    private void awaitAll(Memory memory) {
        Cleanup.each(gpus.reversed(), gpu -> on(gpu, _ -> gpu.await(memory.few)));
    }

    @Override
    public void close() {
        List<Runnable> steps = List.copyOf(taken);
        taken.clear();
        Cleanup.each(steps, Runnable::run);
    }

    /** A part of the layer and its driver objects beside its plan's stream. Its methods run in the part's context. */
    private final class Gpu {
        final int rank;
        final TornadoMoeKernel part;
        final LayerArrays arrays;
        final long context;
        final TornadoNativeArray incoming;
        final TornadoNativeArray outgoing;

        /** Streams: hidden states from the host, from the other GPUs; output to the host. */
        final long in;

        final long exchange;
        final long out;

        /**
         * Events of each chunk: the own share has arrived, all shares have, the part is computed, the own share is
         * added.
         */
        final long[] arrived;

        final long[] gathered;
        final long[] computed;
        final long[] added;

        /** Events of pieces of the output, by number: the piece has arrived at the host. */
        private final Map<Integer, Long> fetched = new HashMap<>();

        /**
         * Each chunk's header for the kernels: the layer's header may already be the next chunk's before it is copied.
         */
        private final MemorySegment headers = arena.allocate(PAGE, PAGE);

        /** The kernel that adds the parts of a share. */
        private long adds;

        private final MemorySegment values = arena.allocate(ValueLayout.JAVA_LONG, PARAMETERS);
        private final MemorySegment parameters = arena.allocate(ValueLayout.ADDRESS, PARAMETERS);
        private final MemorySegment how = CudaDriver.allocateLaunch(arena);

        Gpu(int rank, TornadoMoeKernel part) {
            this.rank = rank;
            this.part = part;
            arrays = part.arrays();
            incoming = arrays.work.incoming();
            outgoing = arrays.work.outgoing();
            context = replay().context();
            in = stream();
            exchange = stream();
            out = stream();
            arrived = events();
            gathered = events();
            computed = events();
            added = events();
            pin(headers); // as the library has pinned the arrays that are copied
        }

        private long stream() {
            return CudaCall.this.take(context, driver::stream, driver::destroyStream);
        }

        private long event() {
            return CudaCall.this.take(context, driver::timelessEvent, driver::destroyEvent);
        }

        private long[] events() {
            long[] events = new long[CHUNKS];
            for (int chunk = 0; chunk < CHUNKS; chunk++) {
                events[chunk] = event();
            }
            return events;
        }

        private void pin(MemorySegment memory) {
            try {
                if (driver.pin(memory)) {
                    taken.push(() -> {
                        driver.setContext(context);
                        driver.unpin(memory);
                    });
                }
            } catch (MoeExecutionException refused) {
                LOG.log(System.Logger.Level.DEBUG, part.device() + " copies from and to pageable memory", refused);
            }
        }

        /** Finds the other GPUs' arrays, and makes the kernel that adds them. */
        void meetOthers() {
            driver.setContext(context);
            for (Gpu other : gpus) {
                if (other.context != context) {
                    driver.usePeer(other.context);
                }
                values.setAtIndex(
                        ValueLayout.JAVA_LONG, other.rank, other.replay().address(other.outgoing));
            }
            byte[] binary = driver.compile( // for the device of the current context
                    KernelSource.text("join.cu"),
                    List.of(CudaDriver.architecture(driver.computeCapability(driver.currentDevice()))));
            long module = CudaCall.this.take(context, () -> driver.loadModule(binary), driver::unloadModule);
            adds = driver.function(
                    module,
                    switch (arrays.shape.config.inDtype()) {
                        case F16 -> "addF16";
                        case BF16 -> "addBf16";
                        default -> "addFloats";
                    });
            values.setAtIndex(ValueLayout.JAVA_LONG, MOST_PARTS, rank);
            values.setAtIndex(ValueLayout.JAVA_LONG, MOST_PARTS + 1, gpus.size());
            for (int i = 0; i < PARAMETERS; i++) {
                parameters.setAtIndex(ValueLayout.ADDRESS, i, values.asSlice(8L * i));
            }
        }

        /** Its plan's steps, on the stream of its kernels. */
        CudaTask.Replay replay() {
            return part.replay();
        }

        /** Whether a step is a kernel, or a copy other than those of hidden states and output. */
        boolean isForKernels(int step) {
            return !(replay().steps().get(step) instanceof CudaStep.Copy copy)
                    || (copy.toDevice() && copy.array() != incoming && copy.array() != arrays.work.header);
        }

        /** Enqueues a call of few tokens, up to its part of the output. */
        void start(Share all) {
            begin(all.chunk);
            all.in.forEach(piece -> take(piece, replay().stream()));
            for (int step = 0; step < replay().steps().size(); step++) {
                if (isForKernels(step)) {
                    replay().enqueue(step, 0);
                }
            }
            driver.record(computed[0], replay().stream());
        }

        /** Enqueues the copy of a piece of hidden states from the host's memory. */
        void take(Piece piece, long stream) {
            MemorySegment here = piece.to();
            driver.copyToDevice(
                    replay().address(incoming) + piece.at(),
                    here.asSlice(piece.at(), piece.bytes()),
                    piece.bytes(),
                    stream);
        }

        /** Enqueues the copy of hidden states that another GPU has read. */
        void take(Share others) {
            if (others.isNone()) {
                return;
            }
            Gpu other = others.gpu;
            long at = others.from * row;
            driver.waitFor(other.arrived[others.chunk.number], exchange);
            driver.copyBetween(
                    replay().address(incoming) + at,
                    context,
                    other.replay().address(other.incoming) + at,
                    other.context,
                    (others.to - others.from) * row,
                    exchange);
        }

        /** Passes a chunk's size to the kernels. */
        void begin(Chunk chunk) {
            arrays.setTokens(chunk.tokens());
            replay().begin();
            MemorySegment header = arrays.work.header.getSegment();
            MemorySegment own = headers.asSlice((long) chunk.number * HEADER_BYTES, HEADER_BYTES);
            MemorySegment.copy(header, 0, own, 0, header.byteSize());
            driver.copyToDevice(replay().address(arrays.work.header), own, header.byteSize(), replay().stream());
        }

        /** Enqueues, after the kernels, the sum of all parts of a share, which replaces the own part. */
        void add(Share share) {
            for (Gpu other : gpus) {
                if (other != this) {
                    driver.waitFor(other.computed[share.chunk.number], replay().stream());
                }
            }
            long ints = Math.ceilDiv((share.to - share.from) * row, 4);
            values.setAtIndex(ValueLayout.JAVA_LONG, MOST_PARTS + 2, share.from * row / 4);
            values.setAtIndex(ValueLayout.JAVA_LONG, MOST_PARTS + 3, ints);
            int groups = Math.toIntExact(Math.ceilDiv(ints, 4 * GROUP));
            CudaDriver.fillLaunch(how, groups, 1, GROUP, 0, replay().stream());
            CudaDriver.startAlone(how);
            driver.launch(how, adds, parameters);
            driver.record(added[share.chunk.number], replay().stream());
        }

        /** Enqueues the copy of a share to the host's memory; with few tokens after the kernels. */
        void fetch(Share share, Memory memory) {
            long stream = memory.few ? replay().stream() : out;
            if (!memory.few) {
                driver.waitFor((gpus.size() > 1 ? added : computed)[share.chunk.number], out);
            }
            for (Piece piece : share.out) {
                driver.copyFromDevice(
                        piece.from().asSlice(piece.at(), piece.bytes()),
                        replay().address(outgoing) + piece.at(),
                        piece.bytes(),
                        stream);
                if (!memory.isOutputPinned && (!memory.few || share.out.size() > 1)) {
                    driver.record(fetched(piece), stream);
                }
            }
        }

        long fetched(Piece piece) {
            return fetched.computeIfAbsent(piece.number(), _ -> event());
        }

        /** Copies a call's other results, for all of its tokens together. */
        void fetchRest(int tokens) {
            arrays.setTokens(tokens);
            replay().begin();
            List<CudaStep> steps = replay().steps();
            for (int step = 0; step < steps.size(); step++) {
                if (steps.get(step) instanceof CudaStep.Copy copy && !copy.toDevice() && copy.array() != outgoing) {
                    replay().enqueue(step, 0);
                }
            }
        }

        void await(boolean few) {
            if (few) {
                replay().await();
                return;
            }
            Cleanup.all(
                    () -> driver.await(in),
                    () -> driver.await(exchange),
                    () -> replay().await(),
                    () -> driver.await(out));
        }
    }
}
