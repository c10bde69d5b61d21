package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Collectors;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.modular.ChosenExperts;
import org.tornadomoe.modular.MoeExecutionException;
import org.tornadomoe.modular.MoeKernel;

/**
 * Parts of a layer on several of CUDA's GPUs as one kernel. All is put on the parts' streams by the calling thread, and the GPUs wait for one another: the
 * first is given the hidden states and hands them on, each of the others puts its part of the output beside the first's, and the first adds them, in
 * their order, and gives the sum back. So what goes over the host's bus is what one GPU alone would take. Takes room for the others' outputs
 * on the first.
 */
final class JoinedMoeKernel implements MoeKernel {
    private static final int GROUP = 256;

    private final List<TornadoMoeKernel> parts;
    private final Arena arena = Arena.ofShared();

    /** In the first part's context: that the hidden states are there, where the others' outputs go, and what adds them. */
    private final long context;

    private final long stream;
    private final long bytes;
    private long arrived;
    private long module;
    private long addParts;
    private long outputs;

    /** That each part's output is with the first, in its own context; the first one's stays 0. */
    private final long[] done;

    private final long[] contexts;
    private final MemorySegment values = arena.allocate(ValueLayout.JAVA_LONG, 5);
    private final MemorySegment parameters = arena.allocate(ValueLayout.ADDRESS, 5);
    private final MemorySegment how = CudaDriver.allocateLaunch(arena);

    /** Of parts that have run once. */
    JoinedMoeKernel(List<TornadoMoeKernel> parts) {
        this.parts = parts;
        LayerArrays first = first().arrays();
        long stride = (long) first.config.maxNumTokens() * first.config.hiddenDim();
        bytes = 4 * stride * (parts.size() - 1);
        done = new long[parts.size()];
        contexts = new long[parts.size()];
        CudaRun.Again again = first().again();
        context = again.context();
        stream = again.stream();
        try {
            CudaDriver.setContext(context);
            contexts[0] = context;
            outputs = CudaDriver.allocate(bytes);
            arrived = CudaDriver.timelessEvent();
            module = CudaDriver.loadModule(
                    CudaDriver.compile(CudaKernel.text("join.cu"), List.of(HopperStages.ARCHITECTURE)));
            addParts = CudaDriver.function(module, "addParts");
            for (int rank = 1; rank < parts.size(); rank++) {
                contexts[rank] = parts.get(rank).again().context();
                CudaDriver.setContext(contexts[rank]);
                done[rank] = CudaDriver.timelessEvent();
            }
        } catch (RuntimeException | Error failure) {
            close();
            throw failure;
        }
        values.setAtIndex(ValueLayout.JAVA_LONG, 0, again.address(first.outgoing()));
        values.setAtIndex(ValueLayout.JAVA_LONG, 1, outputs);
        values.setAtIndex(ValueLayout.JAVA_LONG, 3, stride);
        values.setAtIndex(ValueLayout.JAVA_LONG, 4, parts.size() - 1);
        for (int i = 0; i < 5; i++) {
            parameters.setAtIndex(ValueLayout.ADDRESS, i, values.asSlice(8L * i));
        }
    }

    private TornadoMoeKernel first() {
        return parts.getFirst();
    }

    @Override
    public void forward(MemorySegment hidden, int tokens, MemorySegment output, @Nullable ChosenExperts chosen) {
        parts.forEach(part -> part.turn().lock());
        Device.lockRunning();
        try {
            LayerArrays first = first().arrays();
            long size = 4L * tokens * first.config.hiddenDim();
            TornadoMoeKernel.copy(hidden, first.incoming().getSegment(), size);
            List<CudaRun.Again> runs = new ArrayList<>();
            try {
                enqueue(runs, tokens, size, chosen);
            } finally {
                awaitAll(runs);
            }
            TornadoMoeKernel.copy(first.outgoing().getSegment(), output, size);
            if (chosen != null && !first.config.router().isHandedIn()) {
                first().answer(chosen, tokens * first.config.pairsPerToken());
            }
        } finally {
            Device.unlockRunning();
            parts.forEach(part -> part.turn().unlock());
        }
    }

    private void enqueue(List<CudaRun.Again> runs, int tokens, long size, @Nullable ChosenExperts chosen) {
        for (int rank = 0; rank < parts.size(); rank++) {
            TornadoMoeKernel part = parts.get(rank);
            try {
                CudaRun.Again run = part.begin(tokens, chosen, rank == 0 && chosen != null);
                runs.add(run);
                if (rank == 0) {
                    run.enqueue(step -> copies(step, true));
                    CudaDriver.record(arrived, stream);
                } else {
                    takePart(run, rank, size);
                }
                run.enqueue(step -> !(step instanceof CudaStep.Copy));
                if (rank > 0) {
                    givePart(run, rank, size);
                    run.enqueue(step ->
                            copies(step, false) && !isOf(step, part.arrays().outgoing()));
                }
            } catch (MoeExecutionException failure) {
                throw failed(part, failure);
            }
        }
        try {
            CudaDriver.setContext(context);
            for (int rank = 1; rank < parts.size(); rank++) {
                CudaDriver.waitFor(done[rank], stream);
            }
            long sums = size / 4;
            values.setAtIndex(ValueLayout.JAVA_LONG, 2, sums);
            CudaDriver.fillLaunch(how, Math.toIntExact(Math.ceilDiv(sums, GROUP)), 1, GROUP, 0, stream);
            CudaDriver.startAlone(how);
            CudaDriver.launch(how, addParts, parameters);
            runs.getFirst().enqueue(step -> copies(step, false));
        } catch (MoeExecutionException failure) {
            throw failed(first(), failure);
        }
    }

    /** The hidden states from the first device, once they are there; and what else a call brings. */
    private void takePart(CudaRun.Again run, int rank, long size) {
        LayerArrays arrays = parts.get(rank).arrays();
        CudaRun.Again first = first().again();
        run.enqueue(step -> copies(step, true) && !isOf(step, arrays.incoming()));
        CudaDriver.waitFor(arrived, run.stream());
        CudaDriver.copyBetween(
                run.address(arrays.incoming()),
                contexts[rank],
                first.address(first().arrays().incoming()),
                context,
                size,
                run.stream());
    }

    /** The output to the first device. */
    private void givePart(CudaRun.Again run, int rank, long size) {
        CudaDriver.copyBetween(
                outputs + bytes / (parts.size() - 1) * (rank - 1),
                context,
                run.address(parts.get(rank).arrays().outgoing()),
                contexts[rank],
                size,
                run.stream());
        CudaDriver.record(done[rank], run.stream());
    }

    private static boolean copies(CudaStep step, boolean toDevice) {
        return step instanceof CudaStep.Copy copy && copy.toDevice() == toDevice;
    }

    private static boolean isOf(CudaStep step, Object array) {
        return step instanceof CudaStep.Copy copy && copy.array() == array;
    }

    /** Whatever happened: nothing may be under way when the arrays are used again. */
    private void awaitAll(List<CudaRun.Again> runs) {
        MoeExecutionException failed = null;
        for (int rank = runs.size() - 1; rank >= 0; rank--) {
            try {
                CudaDriver.setContext(contexts[rank]);
                runs.get(rank).await();
            } catch (MoeExecutionException failure) {
                failed = failed(parts.get(rank), failure);
            }
        }
        if (failed != null) {
            throw failed;
        }
    }

    private static MoeExecutionException failed(TornadoMoeKernel part, MoeExecutionException failure) {
        return new MoeExecutionException(part.device() + ": " + failure.getMessage(), failure);
    }

    @Override
    public String device() {
        return parts.stream().map(TornadoMoeKernel::device).collect(Collectors.joining(", "));
    }

    /** What it takes of the first device beside the parts. */
    @Override
    public long deviceBytes() {
        return bytes;
    }

    @Override
    public void close() {
        for (int rank = 1; rank < parts.size(); rank++) {
            if (done[rank] != 0) {
                CudaDriver.setContext(contexts[rank]);
                CudaDriver.destroyEvent(done[rank]);
            }
        }
        CudaDriver.setContext(context);
        if (arrived != 0) {
            CudaDriver.destroyEvent(arrived);
        }
        if (module != 0) {
            CudaDriver.unloadModule(module);
        }
        if (outputs != 0) {
            CudaDriver.free(outputs);
        }
        arena.close();
    }
}
