package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.function.Consumer;
import java.util.function.IntConsumer;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.host.Scratch;
import org.tornadomoe.host.Team;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.CallShares.Chunk;
import org.tornadomoe.tornado.CallShares.Memory;
import org.tornadomoe.tornado.CallShares.Share;
import org.tornadomoe.tornado.HostCopies.Piece;
import org.tornadomoe.tornado.device.CudaDriver;
import org.tornadomoe.tornado.graph.LayerArrays;

/**
 * Calls of a layer on one CUDA GPU, or of its parts on several, in which copies and kernels overlap. The calling thread
 * enqueues everything on streams, and the GPUs wait for one another.
 *
 * <p>Tokens are processed in chunks: while the kernels compute one, the next one arrives and the output of the one
 * before leaves. With several GPUs, each reads its share of a chunk's tokens over its own link to the host, and they
 * exchange what they have read. Each computes its part of the output, adds all parts of its share, in the order of the
 * GPUs, and writes the sum back. With few tokens each GPU reads all of them, and the first one adds and writes. Calls
 * of very few are {@linkplain RecordedCall recorded}; the first one runs both ways.
 *
 * <p>A token's bits don't depend on its chunk; where they could, there is one chunk. Not thread-safe: one thread at a
 * time.
 */
final class CudaCall implements AutoCloseable {
    private static final System.Logger LOG = System.getLogger(CudaCall.class.getName());

    /** The layer's parts, and what each does on its GPU. */
    private final List<TornadoMoeKernel> parts;

    private final List<CudaPart> gpus = new ArrayList<>();
    private final CudaDriver driver;
    private final CudaObjects objects;

    /** Bytes of a token's hidden states, and of its output. */
    private final long row;

    /**
     * Enqueues calls of few tokens with one thread per GPU, because enqueueing alone takes as long as some GPUs' work.
     */
    private final Team team;

    private final Scratch scratch = new Scratch();

    /** Whether calls of very few tokens are recorded; until the first refusal. */
    private boolean records;

    /** Whether the first of them had the bits of one that wasn't recorded. */
    private boolean agrees;

    /** These calls; null before the first. */
    private @Nullable RecordedCall recorded;

    /** Makes a call for parts that have run once; the caller must own them during every call. */
    CudaCall(List<TornadoMoeKernel> parts) {
        this(parts, new Team(parts.size()));
    }

    CudaCall(List<TornadoMoeKernel> parts, Team team) {
        this.parts = parts;
        this.team = team;
        LayerArrays first = parts.getFirst().arrays();
        row = (long) first.shape.config.inDtype().bytes() * first.shape.config.hiddenDim();
        driver = parts.getFirst().replay().driver();
        objects = new CudaObjects(driver);
        try {
            for (TornadoMoeKernel part : parts) {
                gpus.add(new CudaPart(gpus.size(), part.device(), part.arrays(), part::replay, objects));
            }
            if (parts.size() > 1) {
                gpus.forEach(gpu -> gpu.meet(gpus));
            }
            records = RecordedCall.serves(gpus, driver);
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, this::close);
            throw failure;
        }
    }

    /**
     * Runs the layer.
     *
     * @param chosen receives the first part's choice, or passes the choice in
     * @throws MoeExecutionException whose message begins with the device's name if there are several devices
     */
    void forward(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        RecordedCall ready = isRecorded(tokens, chosen) ? recorded(tokens) : null;
        if (ready == null) {
            enqueue(hidden, tokens, output, chosen);
        } else if (agrees) {
            ready.forward(hidden, tokens, output);
        } else {
            compare(ready, hidden, tokens, output);
        }
    }

    /** Runs the first recorded call and the same one not recorded: if their bits differ, no further one is recorded. */
    private void compare(RecordedCall ready, MemorySegment hidden, int tokens, MemorySegment output) {
        try (Arena once = Arena.ofConfined()) {
            MemorySegment other = once.allocate(tokens * row, 64);
            ready.forward(hidden, tokens, other);
            enqueue(hidden, tokens, output, null);
            agrees = other.mismatch(output.asSlice(0, other.byteSize())) == -1;
        }
        if (!agrees) {
            records = false;
            LOG.log(
                    System.Logger.Level.WARNING,
                    gpus.getFirst().device()
                            + " launches calls of few tokens kernel by kernel: recorded, the bits differ");
        }
    }

    /** Runs the layer, and launches kernel by kernel. */
    private void enqueue(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        CudaPart first = gpus.getFirst();
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
                Memory.isFew(bytes));
        for (TornadoMoeKernel part : parts) {
            part.prepare(tokens, chosen, answers && part == parts.getFirst());
        }
        try (HostCopies in = new HostCopies(hidden);
                HostCopies out = new HostCopies(output)) {
            Cleanup.all(
                    () -> {
                        List<List<Share>> chunks = CallShares.of(
                                gpus.stream().map(gpu -> gpu.arrays).toList(), memory, tokens, row, in, out);
                        if (!memory.isHiddenPinned()) {
                            chunks.forEach(
                                    shares -> shares.forEach(share -> share.in().forEach(Piece::begin)));
                        }
                        for (List<Share> shares : chunks) {
                            if (memory.few()) {
                                startAll(shares.getFirst(), memory);
                            } else {
                                bring(shares, memory);
                                compute(shares.getFirst().chunk());
                            }
                            fetch(shares, memory);
                        }
                        if (!memory.isOutputPinned()) {
                            receiveAll(chunks, memory);
                        }
                        if (answers || first.arrays.shape.balanced) {
                            // Copies to memory that isn't pinned, so the driver may make the host wait.
                            each(gpu -> gpu.fetchRest(tokens));
                        }
                        if (!memory.isOutputPinned()) {
                            chunks.forEach(shares ->
                                    shares.forEach(share -> share.out().forEach(Piece::await)));
                        }
                    },
                    () -> awaitAll(memory));
        }
        if (chosen != null && answers) {
            parts.getFirst().answer(chosen, tokens * first.arrays.shape.config.pairsPerToken());
        }
    }

    /** Whether a call is recorded, unless the driver refuses then. */
    boolean isRecorded(int tokens, @Nullable ChosenExperts chosen) {
        return records && chosen == null && tokens * row <= RecordedCall.MOST_BYTES;
    }

    /** Ready for so many tokens; null if the driver refuses, and from then on. */
    private @Nullable RecordedCall recorded(int tokens) {
        try {
            if (recorded == null) {
                recorded = new RecordedCall(gpus, driver, this::together);
            }
            parts.forEach(part -> part.prepare(tokens, null, false));
            recorded.record(tokens);
            return recorded;
        } catch (MoeExecutionException refused) {
            LOG.log(System.Logger.Level.DEBUG, "calls of few tokens are not recorded", refused);
            records = false;
            return null;
        }
    }

    /** All GPUs read the tokens that the first one has in the host's memory, and compute. Each uses one stream. */
    private void startAll(Share all, Memory memory) {
        if (!memory.isHiddenPinned()) {
            all.in().forEach(Piece::await);
        }
        together(rank -> on(gpus.get(rank), gpu -> gpu.start(all)));
    }

    /** Runs something for each GPU's rank, each on its own thread if the threads are free. */
    private void together(IntConsumer what) {
        @Nullable RuntimeException[] failures = new @Nullable RuntimeException[gpus.size()];
        boolean together = team.begin();
        try {
            team.run(
                    together,
                    gpus.size(),
                    (rank, _) -> {
                        try {
                            what.accept(rank);
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
        Chunk chunk = shares.getFirst().chunk();
        int most = shares.stream().mapToInt(share -> share.in().size()).max().orElse(0);
        for (int i = 0; i < most; i++) {
            for (Share share : shares) {
                if (i < share.in().size()) {
                    Piece piece = share.in().get(i);
                    if (!memory.isHiddenPinned()) {
                        piece.await();
                    }
                    on(gpus.get(share.rank()), gpu -> gpu.take(piece, gpu.in));
                }
            }
        }
        each(gpu -> driver.record(gpu.arrived[chunk.number()], gpu.in));
        if (gpus.size() > 1) {
            each(gpu -> {
                for (int i = 1; i < gpus.size(); i++) { // starts with the next GPU, so that not all ask the same one
                    gpu.take(shares.get((gpu.rank + i) % gpus.size()));
                }
                driver.record(gpu.gathered[chunk.number()], gpu.exchange);
            });
        }
        each(gpu -> {
            gpu.begin(chunk);
            driver.waitFor(gpu.arrived[chunk.number()], gpu.replay().stream());
            if (gpus.size() > 1) {
                driver.waitFor(gpu.gathered[chunk.number()], gpu.replay().stream());
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
            for (CudaPart gpu : gpus) {
                int step = i;
                if (step < gpu.replay().steps().size() && gpu.isForKernels(step)) {
                    on(gpu, _ -> gpu.replay().enqueue(step, chunk.from()));
                }
            }
        }
        each(gpu -> driver.record(gpu.computed[chunk.number()], gpu.replay().stream()));
    }

    /** Each GPU adds the parts of its share; then the share goes to the host. */
    private void fetch(List<Share> shares, Memory memory) {
        for (Share share : shares) {
            if (gpus.size() > 1 && !share.isNone()) {
                on(gpus.get(share.rank()), gpu -> gpu.add(share));
            }
        }
        for (Share share : shares) {
            if (!share.isNone()) {
                on(gpus.get(share.rank()), gpu -> gpu.fetch(share, memory));
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
        int most = shares.stream().mapToInt(share -> share.out().size()).max().orElse(0);
        for (int i = 0; i < most; i++) {
            for (Share share : shares) {
                if (i < share.out().size()) {
                    Piece piece = share.out().get(i);
                    on(gpus.get(share.rank()), gpu -> {
                        if (memory.few() && share.out().size() == 1) {
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

    private void each(Consumer<CudaPart> what) {
        gpus.forEach(gpu -> on(gpu, what));
    }

    private static void on(CudaPart gpu, Consumer<CudaPart> what) {
        gpu.run(() -> what.accept(gpu));
    }

    /**
     * Waits for all GPUs, whatever happened, because nothing may run when the arrays are used again. The first device
     * waits for the others and may fail because of them, so it comes last.
     */
    private void awaitAll(Memory memory) {
        Cleanup.each(gpus.reversed(), gpu -> on(gpu, _ -> gpu.await(memory.few())));
    }

    @Override
    public void close() {
        RecordedCall last = recorded;
        recorded = null;
        Cleanup.all(
                () -> {
                    if (last != null) {
                        last.close();
                    }
                },
                objects::close);
    }
}
