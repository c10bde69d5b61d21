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
 * Calls of a layer on one of CUDA's GPUs, or of its parts on several, in which copies and kernels overlap. The calling
 * thread puts all of it on streams, and the GPUs wait for one another.
 *
 * <p>Tokens go in chunks: while the kernels have one, the next comes and the output of the one before goes. Of several
 * GPUs each reads its share of a chunk's tokens over its own link to the host, they hand one another what they have
 * read, each computes its part of the output, adds all parts of its share, in the order of the GPUs, and writes that
 * back. Of few tokens each GPU reads all, and the first adds and writes.
 *
 * <p>A token's bits don't depend on its chunk, and where they could, there is one chunk. Used by one thread at a time.
 */
final class CudaCall implements AutoCloseable {
    /** Parts that {@code join.cu} adds. */
    static final int MOST_PARTS = 8;

    /** Bytes of hidden states up to which nothing overlaps, and each of several GPUs reads all of them. */
    private static final long FEW = 1 << 20;

    /** Tokens of a call that is cut into chunks, and what a chunk's tokens are a multiple of. */
    private static final int MANY_TOKENS = 1024;

    private static final int CHUNK_TOKENS = 128;
    private static final int CHUNKS = 3;

    /** How many times as fast a GPU reads its own memory as the host's, about. */
    private static final long MEMORY_BY_LINK = 64;

    private static final int PAGE = 4096;
    private static final int HEADER_BYTES = 64;
    private static final int GROUP = 256;

    /** Parameters of the kernel that adds: the parts, its rank, how many there are, the first int, and how many. */
    private static final int PARAMETERS = MOST_PARTS + 4;

    private static final System.Logger LOG = System.getLogger(CudaCall.class.getName());

    private final List<Gpu> gpus = new ArrayList<>();
    private final CudaDriver driver;
    private final Arena arena = Arena.ofShared();

    /** Gives back what it has of the driver, the last first. */
    private final Deque<Runnable> taken = new ArrayDeque<>();

    /** Bytes of a token's hidden states, and of its output. */
    private final long row;

    /** Puts on streams what few tokens take, for each GPU one thread: that alone takes as long as many a GPU. */
    private final Team team;

    private final Scratch scratch = new Scratch();

    /** Of parts that have run once, and are the caller's own in every call. */
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

    /** Something of a context's, which is given back by {@link #close}. */
    private long take(long context, LongSupplier take, LongConsumer giveBack) {
        driver.setContext(context);
        long handle = take.getAsLong();
        taken.push(() -> {
            driver.setContext(context);
            giveBack.accept(handle);
        });
        return handle;
    }

    /** Tokens that the kernels have together, from the first one to before the last. */
    private record Chunk(int number, int from, int to) {
        int tokens() {
            return to - from;
        }
    }

    /** Memories of a call; whether GPUs copy from and to the caller's themselves, and whether few tokens come. */
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
     * @param chosen takes what the first part chose, or brings the choice
     * @throws MoeExecutionException that begins with the device's name, where there are several
     */
    void forward(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        Gpu first = gpus.getFirst();
        boolean answers = chosen != null && first.arrays.shape.routes;
        long bytes = tokens * row;
        // Output of one chunk would else be written over hidden states of the next.
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
                            // To memory that isn't pinned, for which the driver may have the host wait.
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

    /** Of each chunk, in the order of the GPUs; an even number of tokens, so that two never have an int in common. */
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
                // which copy of an expert a token takes depends on its place in the call
                || arrays.shape.balanced
                // one scale for all tokens of the call
                || (arrays.shape.scheme == Int8Scheme.W8A8_TENSOR && !arrays.staticScales)
                || gpus.stream()
                        .anyMatch(gpu -> !gpu.arrays.isLaunchedAlike(edge, tokens)
                                || !gpu.arrays.isLaunchedAlike(tokens - 2 * edge, tokens));
        // Each further chunk reads the weights once more; three quarters of the copies are done meanwhile.
        long more = (CHUNKS - 1) * arrays.expertBytes();
        long less = tokens * row * 3 / 2 / gpus.size() * MEMORY_BY_LINK;
        return whole || more > less
                ? List.of(new Chunk(0, 0, tokens))
                : List.of(
                        new Chunk(0, 0, edge), new Chunk(1, edge, tokens - edge), new Chunk(2, tokens - edge, tokens));
    }

    /**
     * All GPUs read the tokens that the first one has in the host's memory, and compute, each on one stream, and put
     * there by a thread of its own if it comes.
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

    /** Each GPU reads its share, a piece of each in turn, and takes the others' when they have them. */
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
                for (int i = 1; i < gpus.size(); i++) { // the next first: not all are to ask the same one
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

    /** The kernels of a chunk, of all GPUs in turn, so that none waits until the host is through with another. */
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

    /** Each GPU adds the parts of its share, which then goes to the host. */
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

    /** Of GPUs that fail the one that the others waited for is told of first. */
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

    /** What has come from a GPU is copied on, a piece of each in turn. */
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

    /** In a GPU's context. What fails is told with its name, if there are several. */
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
     * Whatever happened: nothing may be under way when the arrays are used again. The first device waits for the
     * others, whose failure may be its own, and so comes last.
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

    /** A part of the layer, and what it has of the driver beside its plan's stream, in whose context methods run. */
    private final class Gpu {
        final int rank;
        final TornadoMoeKernel part;
        final LayerArrays arrays;
        final long context;
        final TornadoNativeArray incoming;
        final TornadoNativeArray outgoing;

        /** Streams: hidden states come from the host, from the other GPUs; the output goes to the host. */
        final long in;

        final long exchange;
        final long out;

        /** Events of each chunk: the own share is here, all of it is, the part is computed, the own share is added. */
        final long[] arrived;

        final long[] gathered;
        final long[] computed;
        final long[] added;

        /** Events of pieces of the output, by their numbers: they are at the host. */
        private final Map<Integer, Long> fetched = new HashMap<>();

        /** What each chunk's kernels find as the header: that of the layer is the next one's before it is copied. */
        private final MemorySegment headers = arena.allocate(PAGE, PAGE);

        /** How the parts of a share are added. */
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
            pin(incoming.getSegment());
            pin(outgoing.getSegment());
            pin(headers);
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

        /** Finds what the others compute, and what adds it. */
        void meetOthers() {
            driver.setContext(context);
            for (Gpu other : gpus) {
                if (other.context != context) {
                    driver.usePeer(other.context);
                }
                values.setAtIndex(
                        ValueLayout.JAVA_LONG, other.rank, other.replay().address(other.outgoing));
            }
            byte[] binary = driver.compile( // for the device whose context is current
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

        /** Copies, beside those of hidden states and output, and kernels. */
        boolean isForKernels(int step) {
            return !(replay().steps().get(step) instanceof CudaStep.Copy copy)
                    || (copy.toDevice() && copy.array() != incoming && copy.array() != arrays.work.header);
        }

        /** What few tokens take, up to the part of the output. */
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

        /** A piece of hidden states that is in the host's memory. */
        void take(Piece piece, long stream) {
            MemorySegment here = piece.to();
            driver.copyToDevice(
                    replay().address(incoming) + piece.at(),
                    here.asSlice(piece.at(), piece.bytes()),
                    piece.bytes(),
                    stream);
        }

        /** The hidden states that another GPU has read. */
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

        /** Tells the kernels of a chunk's size. */
        void begin(Chunk chunk) {
            arrays.setTokens(chunk.tokens());
            replay().begin();
            MemorySegment header = arrays.work.header.getSegment();
            MemorySegment own = headers.asSlice((long) chunk.number * HEADER_BYTES, HEADER_BYTES);
            MemorySegment.copy(header, 0, own, 0, header.byteSize());
            driver.copyToDevice(replay().address(arrays.work.header), own, header.byteSize(), replay().stream());
        }

        /** The sum of all parts of a share in place of the own one, behind the kernels. */
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

        /** Brings a share to the host's memory, of few tokens behind the kernels. */
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

        /** What a call gives beside the output: of all its tokens together. */
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
