package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Supplier;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.CallShares.Chunk;
import org.tornadomoe.tornado.CallShares.Memory;
import org.tornadomoe.tornado.CallShares.Share;
import org.tornadomoe.tornado.HostCopies.Piece;
import org.tornadomoe.tornado.cuda.CudaStep;
import org.tornadomoe.tornado.cuda.CudaTask;
import org.tornadomoe.tornado.device.CudaDriver;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.kernels.KernelSource;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * One GPU's part of a layer in a {@link CudaCall}: its streams and events beside its plan's stream, and what it can
 * enqueue on them. Its methods run in its context, which {@link #run} makes current.
 */
final class CudaPart {
    /** The maximum number of parts that {@code join.cu} adds. */
    static final int MOST = 8;

    private static final int PAGE = 4096;
    private static final int HEADER_BYTES = 64;
    private static final int GROUP = 256;

    /**
     * Parameters of the kernel that adds: the parts, its rank, the number of parts, the first int, and the number of
     * ints.
     */
    private static final int PARAMETERS = MOST + 4;

    private static final System.Logger LOG = System.getLogger(CudaPart.class.getName());

    final int rank;
    final LayerArrays arrays;
    final long context;

    /** Streams: hidden states from the host, from the other GPUs; output to the host. */
    final long in;

    final long exchange;
    final long out;

    /**
     * Events of each chunk: the own share has arrived, all shares have, the part is computed, the own share is added.
     */
    final long[] arrived;

    final long[] gathered;
    final long[] computed;
    final long[] added;

    private final String device;
    private final Supplier<CudaTask.Replay> replay;
    private final CudaObjects objects;
    private final CudaDriver driver;
    private final TornadoNativeArray incoming;
    private final TornadoNativeArray outgoing;

    /** Bytes of a token's hidden states, and of its output. */
    private final long row;

    /** All parts of the layer, in the order of the GPUs. */
    private List<CudaPart> parts = List.of(this);

    /** Events of pieces of the output, by number: the piece has arrived at the host. */
    private final Map<Integer, Long> fetched = new HashMap<>();

    /** Each chunk's header for the kernels: the layer's header may already be the next chunk's before it is copied. */
    private final MemorySegment headers;

    /** The kernel that adds the parts of a share. */
    private long adds;

    private final MemorySegment values;
    private final MemorySegment parameters;
    private final MemorySegment how;

    /**
     * @param device its name
     * @param replay gives the replay of its plan's steps
     * @param objects receives its driver objects
     */
    CudaPart(int rank, String device, LayerArrays arrays, Supplier<CudaTask.Replay> replay, CudaObjects objects) {
        this.rank = rank;
        this.device = device;
        this.arrays = arrays;
        this.replay = replay;
        this.objects = objects;
        driver = objects.driver();
        incoming = arrays.work.incoming();
        outgoing = arrays.work.outgoing();
        row = (long) arrays.shape.config.inDtype().bytes() * arrays.shape.config.hiddenDim();
        context = replay().context();
        headers = objects.arena().allocate(PAGE, PAGE);
        values = objects.arena().allocate(ValueLayout.JAVA_LONG, PARAMETERS);
        parameters = objects.arena().allocate(ValueLayout.ADDRESS, PARAMETERS);
        how = CudaDriver.allocateLaunch(objects.arena());
        in = objects.stream(context);
        exchange = objects.stream(context);
        out = objects.stream(context);
        arrived = events();
        gathered = events();
        computed = events();
        added = events();
        try {
            objects.pin(context, headers); // as the library has pinned the arrays that are copied
        } catch (MoeExecutionException refused) {
            LOG.log(System.Logger.Level.DEBUG, device + " copies from and to pageable memory", refused);
        }
    }

    private long[] events() {
        long[] events = new long[CallShares.CHUNKS];
        for (int chunk = 0; chunk < CallShares.CHUNKS; chunk++) {
            events[chunk] = objects.event(context);
        }
        return events;
    }

    /** The device's name. */
    String device() {
        return device;
    }

    /** Its plan's steps, on the stream of its kernels. */
    CudaTask.Replay replay() {
        return replay.get();
    }

    /** Finds the other GPUs' arrays, and makes the kernel that adds them. */
    void meet(List<CudaPart> all) {
        parts = List.copyOf(all);
        driver.setContext(context);
        for (CudaPart other : parts) {
            if (other.context != context) {
                driver.usePeer(other.context);
            }
            values.setAtIndex(ValueLayout.JAVA_LONG, other.rank, other.replay().address(other.outgoing));
        }
        byte[] binary = driver.compile( // for the device of the current context
                KernelSource.text("join.cu"),
                List.of(CudaDriver.architecture(driver.computeCapability(driver.currentDevice()))));
        long module = objects.take(context, () -> driver.loadModule(binary), driver::unloadModule);
        adds = driver.function(
                module,
                switch (arrays.shape.config.inDtype()) {
                    case F16 -> "addF16";
                    case BF16 -> "addBf16";
                    default -> "addFloats";
                });
        values.setAtIndex(ValueLayout.JAVA_LONG, MOST, rank);
        values.setAtIndex(ValueLayout.JAVA_LONG, MOST + 1, parts.size());
        for (int i = 0; i < PARAMETERS; i++) {
            parameters.setAtIndex(ValueLayout.ADDRESS, i, values.asSlice(8L * i));
        }
    }

    /** Runs something in its context. If it is one of several parts, failures are reported with the device's name. */
    void run(Runnable what) {
        try {
            driver.setContext(context);
            what.run();
        } catch (MoeExecutionException failure) {
            throw parts.size() == 1
                    ? failure
                    : new MoeExecutionException(device + ": " + failure.getMessage(), failure);
        }
    }

    /** Whether a step is a kernel, or a copy other than those of hidden states and output. */
    boolean isForKernels(int step) {
        return !(replay().steps().get(step) instanceof CudaStep.Copy copy)
                || (copy.toDevice() && copy.array() != incoming && copy.array() != arrays.work.header);
    }

    /** Enqueues a call of few tokens, up to its part of the output. */
    void start(Share all) {
        begin(all.chunk());
        all.in().forEach(piece -> take(piece, replay().stream()));
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
        CudaPart other = parts.get(others.rank());
        long at = others.from() * row;
        driver.waitFor(other.arrived[others.chunk().number()], exchange);
        driver.copyBetween(
                replay().address(incoming) + at,
                context,
                other.replay().address(other.incoming) + at,
                other.context,
                (others.to() - others.from()) * row,
                exchange);
    }

    /** Passes a chunk's size to the kernels. */
    void begin(Chunk chunk) {
        arrays.setTokens(chunk.tokens());
        replay().begin();
        MemorySegment header = arrays.work.header.getSegment();
        MemorySegment own = headers.asSlice((long) chunk.number() * HEADER_BYTES, HEADER_BYTES);
        MemorySegment.copy(header, 0, own, 0, header.byteSize());
        driver.copyToDevice(replay().address(arrays.work.header), own, header.byteSize(), replay().stream());
    }

    /** Enqueues, after the kernels, the sum of all parts of a share, which replaces the own part. */
    void add(Share share) {
        for (CudaPart other : parts) {
            if (other != this) {
                driver.waitFor(other.computed[share.chunk().number()], replay().stream());
            }
        }
        long ints = Math.ceilDiv((share.to() - share.from()) * row, 4);
        values.setAtIndex(ValueLayout.JAVA_LONG, MOST + 2, share.from() * row / 4);
        values.setAtIndex(ValueLayout.JAVA_LONG, MOST + 3, ints);
        int groups = Math.toIntExact(Math.ceilDiv(ints, 4 * GROUP));
        CudaDriver.fillLaunch(how, groups, 1, GROUP, 0, replay().stream());
        CudaDriver.startAlone(how);
        driver.launch(how, adds, parameters);
        driver.record(added[share.chunk().number()], replay().stream());
    }

    /** Enqueues the copy of a share to the host's memory; with few tokens after the kernels. */
    void fetch(Share share, Memory memory) {
        long stream = memory.few() ? replay().stream() : out;
        if (!memory.few()) {
            driver.waitFor((parts.size() > 1 ? added : computed)[share.chunk().number()], out);
        }
        for (Piece piece : share.out()) {
            driver.copyFromDevice(
                    piece.from().asSlice(piece.at(), piece.bytes()),
                    replay().address(outgoing) + piece.at(),
                    piece.bytes(),
                    stream);
            if (!memory.isOutputPinned() && (!memory.few() || share.out().size() > 1)) {
                driver.record(fetched(piece), stream);
            }
        }
    }

    /** The event after the copy of a piece of the output. */
    long fetched(Piece piece) {
        return fetched.computeIfAbsent(piece.number(), _ -> objects.event(context));
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

    /** Waits for everything that it has enqueued. */
    void await(boolean few) {
        if (few) {
            replay().await();
            return;
        }
        Cleanup.all(
                () -> driver.await(in), () -> driver.await(exchange), () -> replay().await(), () -> driver.await(out));
    }
}
