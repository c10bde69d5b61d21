package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.function.LongConsumer;
import java.util.function.LongSupplier;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.ChosenExperts;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.kernel.MoeKernel;
import org.tornadomoe.tornado.cuda.CudaRun;
import org.tornadomoe.tornado.cuda.CudaStep;
import org.tornadomoe.tornado.device.CudaDriver;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.kernels.KernelSource;

/**
 * Parts of a layer on several of CUDA's GPUs as one kernel. All is put on the parts' streams by the calling thread, and
 * the GPUs wait for one another: the first is given the hidden states and hands them on, each of the others puts its
 * part of the output beside the first's, and the first adds them, in their order, and gives the sum back. So what goes
 * over the host's bus is what one GPU alone would take. Takes room for the others' outputs on the first.
 */
final class JoinedMoeKernel implements MoeKernel {
    private static final int GROUP = 256;

    private final List<TornadoMoeKernel> parts;
    private final CudaDriver driver;
    private final Arena arena = Arena.ofShared();

    /**
     * In the first part's context: that the hidden states are there, where the others' outputs go, and what adds them.
     */
    private final long context;

    private final long stream;
    private final long bytes;
    private final long arrived;
    private final long addParts;
    private final long outputs;

    /** Gives back what it has of the driver, the last first. */
    private final Deque<Runnable> taken = new ArrayDeque<>();

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
        long stride = (long) first.shape.config.maxNumTokens() * first.shape.config.hiddenDim();
        bytes = 4 * stride * (parts.size() - 1);
        done = new long[parts.size()];
        contexts = new long[parts.size()];
        CudaRun.Again again = first().again();
        driver = again.driver();
        context = again.context();
        stream = again.stream();
        try {
            taken.push(arena::close);
            contexts[0] = context;
            outputs = take(context, () -> driver.allocate(bytes), driver::free);
            arrived = take(context, driver::timelessEvent, driver::destroyEvent);
            byte[] binary = driver.compile( // for the device whose context is current
                    KernelSource.text("join.cu"),
                    List.of(CudaDriver.architecture(driver.computeCapability(driver.currentDevice()))));
            long module = take(context, () -> driver.loadModule(binary), driver::unloadModule);
            addParts = driver.function(module, "addParts");
            for (int rank = 1; rank < parts.size(); rank++) {
                contexts[rank] = parts.get(rank).again().context();
                done[rank] = take(contexts[rank], driver::timelessEvent, driver::destroyEvent);
            }
            values.setAtIndex(ValueLayout.JAVA_LONG, 0, again.address(first.work.outgoing()));
            values.setAtIndex(ValueLayout.JAVA_LONG, 1, outputs);
            values.setAtIndex(ValueLayout.JAVA_LONG, 3, stride);
            values.setAtIndex(ValueLayout.JAVA_LONG, 4, parts.size() - 1);
            for (int i = 0; i < 5; i++) {
                parameters.setAtIndex(ValueLayout.ADDRESS, i, values.asSlice(8L * i));
            }
        } catch (RuntimeException | Error failure) {
            Cleanup.after(failure, this::close);
            throw failure;
        }
    }

    /** Something of a context's, which is given back by {@link #close}. */
    private long take(long of, LongSupplier take, LongConsumer giveBack) {
        driver.setContext(of);
        long handle = take.getAsLong();
        taken.push(() -> {
            driver.setContext(of);
            giveBack.accept(handle);
        });
        return handle;
    }

    private TornadoMoeKernel first() {
        return parts.getFirst();
    }

    /** Without adapters. */
    @Override
    public void forward(
            MemorySegment hidden,
            int tokens,
            MemorySegment output,
            @Nullable ChosenExperts chosen,
            int @Nullable [] slotOfToken) {
        if (slotOfToken != null) {
            throw new IllegalArgumentException("slotOfToken: expected none of devices that add the output themselves");
        }
        parts.forEach(part -> part.turn().lock());
        Device.lockRunning();
        try {
            LayerArrays first = first().arrays();
            long size = 4L * tokens * first.shape.config.hiddenDim();
            TornadoMoeKernel.copy(hidden, first.work.incoming().getSegment(), size);
            List<CudaRun.Again> runs = new ArrayList<>();
            Cleanup.all(() -> enqueue(runs, tokens, size, chosen), () -> awaitAll(runs));
            TornadoMoeKernel.copy(first.work.outgoing().getSegment(), output, size);
            if (chosen != null && !first.shape.config.router().isHandedIn()) {
                first().answer(chosen, tokens * first.shape.config.pairsPerToken());
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
                    driver.record(arrived, stream);
                } else {
                    takePart(run, rank, size);
                }
                run.enqueue(step -> !(step instanceof CudaStep.Copy));
                if (rank > 0) {
                    givePart(run, rank, size);
                    run.enqueue(step -> copies(step, false)
                            && !isOf(step, part.arrays().work.outgoing()));
                }
            } catch (MoeExecutionException failure) {
                throw failed(part, failure);
            }
        }
        try {
            driver.setContext(context);
            for (int rank = 1; rank < parts.size(); rank++) {
                driver.waitFor(done[rank], stream);
            }
            long sums = size / 4;
            values.setAtIndex(ValueLayout.JAVA_LONG, 2, sums);
            CudaDriver.fillLaunch(how, Math.toIntExact(Math.ceilDiv(sums, GROUP)), 1, GROUP, 0, stream);
            CudaDriver.startAlone(how);
            driver.launch(how, addParts, parameters);
            runs.getFirst().enqueue(step -> copies(step, false));
        } catch (MoeExecutionException failure) {
            throw failed(first(), failure);
        }
    }

    /** The hidden states from the first device, once they are there; and what else a call brings. */
    private void takePart(CudaRun.Again run, int rank, long size) {
        LayerArrays arrays = parts.get(rank).arrays();
        CudaRun.Again first = first().again();
        run.enqueue(step -> copies(step, true) && !isOf(step, arrays.work.incoming()));
        driver.waitFor(arrived, run.stream());
        driver.copyBetween(
                run.address(arrays.work.incoming()),
                contexts[rank],
                first.address(first().arrays().work.incoming()),
                context,
                size,
                run.stream());
    }

    /** The output to the first device. */
    private void givePart(CudaRun.Again run, int rank, long size) {
        driver.copyBetween(
                outputs + bytes / (parts.size() - 1) * (rank - 1),
                context,
                run.address(parts.get(rank).arrays().work.outgoing()),
                contexts[rank],
                size,
                run.stream());
        driver.record(done[rank], run.stream());
    }

    private static boolean copies(CudaStep step, boolean toDevice) {
        return step instanceof CudaStep.Copy copy && copy.toDevice() == toDevice;
    }

    private static boolean isOf(CudaStep step, Object array) {
        return step instanceof CudaStep.Copy copy && copy.array() == array;
    }

    /**
     * Whatever happened: nothing may be under way when the arrays are used again. The first device waits for the
     * others, whose failure may be its own, and so comes last.
     */
    private void awaitAll(List<CudaRun.Again> runs) {
        Cleanup.each(IntStream.range(0, runs.size()).boxed().toList().reversed(), rank -> {
            try {
                driver.setContext(contexts[rank]);
                runs.get(rank).await();
            } catch (MoeExecutionException failure) {
                throw failed(parts.get(rank), failure);
            }
        });
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
        List<Runnable> steps = List.copyOf(taken);
        taken.clear();
        Cleanup.each(steps, Runnable::run);
    }
}
