package org.tornadomoe.tornado.device;

import java.io.PrintStream;
import java.util.SplittableRandom;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.kernels.KernelSource;
import org.tornadomoe.tornado.kernels.ProbeKernels;
import uk.ac.manchester.tornado.api.AccessorParameters;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.WorkerGrid;
import uk.ac.manchester.tornado.api.WorkerGrid2D;
import uk.ac.manchester.tornado.api.common.Access;
import uk.ac.manchester.tornado.api.enums.DataTransferMode;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;
import uk.ac.manchester.tornado.api.types.arrays.FloatArray;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Finds out whether a device has an instruction by compiling and running it once, when first asked, because TornadoVM's
 * API doesn't say. If it fails to compile or run, or gives a wrong result, the probe returns the reason and throws
 * nothing. Thread-safe.
 */
final class Probe {
    /** Pairs per large block, and work-items per work-group, in {@code amd-gemm.cl}. */
    private static final int AMD_PAIRS = 128;

    private static final int AMD_GROUP = 256;

    private static final int AMD_ROWS = 16;
    private static final int AMD_COLS = 64;

    private final Function<Device, @Nullable String> attempt;
    private boolean asked;
    private @Nullable String problem;

    /**
     * @param attempt tries the instruction; what it returns or throws is the reason why the device lacks it, null if it
     *     has it
     */
    Probe(Function<Device, @Nullable String> attempt) {
        this.attempt = attempt;
    }

    /** Probes {@code dp4a}: four int8 products and their sum. */
    static Probe dp4a() {
        return new Probe(Probe::tryDp4a);
    }

    /** Probes tensor cores, int8 × int8 to int32. */
    static Probe int8Mma() {
        return new Probe(Probe::tryInt8Mma);
    }

    /** Probes tensor cores, half × half to float, as {@code FragmentHalfKernels} uses them. */
    static Probe halfMma() {
        return new Probe(Probe::tryHalfMma);
    }

    /**
     * Probes AMD's matrix cores and a compiler that supports them.
     *
     * @param halves true for half precision with float sums, false for int8 with int32 sums
     */
    static Probe amdMatrixCores(boolean halves) {
        return new Probe(device -> tryAmdMatrixCores(device, halves));
    }

    /** Why the device lacks the instruction; null if it has it. */
    synchronized @Nullable String problem(Device device) {
        if (!asked) {
            PrintStream out = System.out;
            System.setOut(new WithoutBailoutWarning(out));
            try {
                problem = attempt.apply(device);
            } catch (VirtualMachineError failure) {
                throw failure;
            } catch (RuntimeException | Error failure) {
                problem = RootCause.of(failure);
            } finally {
                System.setOut(out);
            }
            asked = true;
        }
        return problem;
    }

    /**
     * Suppresses TornadoVM's warning on standard output about a kernel that it can't build; for a probe that is a
     * normal answer.
     */
    private static final class WithoutBailoutWarning extends PrintStream {
        WithoutBailoutWarning(PrintStream out) {
            super(out, true, out.charset());
        }

        @Override
        public void println(@Nullable String line) {
            if (line == null || !line.contains("WARNING: Code Bailout to Java sequential")) {
                super.println(line);
            }
        }
    }

    private static @Nullable String tryDp4a(Device device) {
        try (HostMemory memory = HostMemory.of(device.backend())) {
            IntArray a = random(memory, ProbeKernels.GROUP, 1);
            IntArray b = random(memory, ProbeKernels.GROUP, 2);
            IntArray out = memory.ints(ProbeKernels.GROUP);
            TaskGraph graph = new TaskGraph("probeDp4a")
                    .transferToDevice(DataTransferMode.EVERY_EXECUTION, a, b)
                    .task("kernel", ProbeKernels::probeDp4a, new KernelContext(), a, b, out)
                    .transferToHost(DataTransferMode.EVERY_EXECUTION, out);
            run(device, graph);
            for (int i = 0; i < ProbeKernels.GROUP; i++) {
                int expected = i;
                for (int k = 0; k < 4; k++) {
                    expected += int8(a, 4 * i + k) * int8(b, 4 * i + k);
                }
                if (out.get(i) != expected) {
                    return wrong(out.get(i), expected);
                }
            }
            return null;
        }
    }

    private static @Nullable String tryInt8Mma(Device device) {
        try (HostMemory memory = HostMemory.of(device.backend())) {
            IntArray a = random(memory, 128, 3);
            IntArray b = random(memory, 64, 4);
            IntArray out = memory.ints(128);
            TaskGraph graph = new TaskGraph("probeInt8Mma")
                    .transferToDevice(DataTransferMode.EVERY_EXECUTION, a, b)
                    .task("kernel", ProbeKernels::probeInt8Mma, new KernelContext(), a, b, out)
                    .transferToHost(DataTransferMode.EVERY_EXECUTION, out);
            run(device, graph);
            for (int i = 0; i < 128; i++) {
                int row = i / 8;
                int column = i % 8;
                int expected = 0;
                for (int k = 0; k < 32; k++) {
                    int word = k / 2 * 4 + column / 2;
                    expected += int8(a, row * 32 + k) * int8(b, 4 * word + k % 2 + column % 2 * 2);
                }
                if (out.get(i) != expected) {
                    return wrong(out.get(i), expected);
                }
            }
            return null;
        }
    }

    private static @Nullable String tryHalfMma(Device device) {
        try (HostMemory memory = HostMemory.of(device.backend())) {
            SplittableRandom random = new SplittableRandom(7);
            IntArray a = memory.ints(128);
            IntArray b = memory.ints(64);
            int[] factor = new int[256];
            for (int i = 0; i < 256; i++) {
                factor[i] = random.nextInt(-64, 65);
                setHalf(a, i, Float.floatToFloat16(factor[i]));
            }
            int[] whole = new int[128];
            for (int i = 0; i < 128; i++) {
                whole[i] = random.nextInt(-2047, 2048);
                setHalf(b, i, Math.abs(whole[i]) | (whole[i] < 0 ? 0x8000 : 0));
            }
            FloatArray out = memory.floats(128);
            TaskGraph graph = new TaskGraph("probeHalfMma")
                    .transferToDevice(DataTransferMode.EVERY_EXECUTION, a, b)
                    .task("kernel", ProbeKernels::probeHalfMma, new KernelContext(), a, b, out)
                    .transferToHost(DataTransferMode.EVERY_EXECUTION, out);
            run(device, graph);
            for (int i = 0; i < 128; i++) {
                int expected = 0;
                for (int k = 0; k < 16; k++) {
                    expected += factor[i / 8 * 16 + k] * whole[k * 8 + i % 8];
                }
                float sum = out.get(i) * 0x1p24f;
                if (sum != expected) {
                    return "it computes " + sum + " where " + expected + " is right";
                }
            }
            return null;
        }
    }

    private static void setHalf(IntArray halves, int index, int bits) {
        int other = index % 2 == 0 ? 0 : halves.get(index / 2);
        halves.set(index / 2, other | ((bits & 0xFFFF) << (index % 2 * 16)));
    }

    /** Tries {@code amd-gemm.cl} with blocks of every size, for one expert with one row per pair. */
    private static @Nullable String tryAmdMatrixCores(Device device, boolean halves) {
        String lacking = AmdTarget.lacking(device.is(Device.OPENCL), device.name());
        if (lacking != null) {
            return lacking;
        }
        try (HostMemory memory = HostMemory.of(device.backend())) {
            IntArray a = random(memory, AMD_PAIRS * AMD_COLS / 4, 5);
            IntArray b = random(memory, AMD_ROWS * AMD_COLS / 4, 6);
            IntArray ids = memory.ints(AMD_PAIRS);
            for (int i = 0; i < AMD_PAIRS; i++) {
                ids.set(i, i);
            }
            IntArray zero = memory.ints(1);
            zero.set(0, 0);
            FloatArray ones = memory.floats(AMD_PAIRS);
            ones.init(1);
            IntArray factor = a;
            if (halves) {
                factor = memory.ints(AMD_PAIRS * (AMD_COLS + 4)); // two halves per value, and a row's scale
                FloatArray values = memory.floats(AMD_PAIRS * AMD_COLS);
                for (int i = 0; i < values.getSize(); i++) {
                    values.set(i, int8(a, i));
                }
                IntArray sizes = ints(memory, 1, 1, 0, 1, 0, 0, 0, AMD_COLS, 1, 1, AMD_COLS, 0);
                IntArray header = ints(memory, AMD_PAIRS, 0);
                Object[] reads = {header, sizes, ids, ids, ids, ids, values, ids, values, values, ones};
                runAmd(device, "probeAmdPacking", halves, AMD_PAIRS, reads, factor);
            }
            IntArray sizes = ints(memory, 1, 1, AMD_ROWS, 1, 0, 0, 0, AMD_COLS, 1, 1, 0, 0);
            for (int block : halves ? new int[] {16, AMD_PAIRS} : new int[] {4, 16, AMD_PAIRS}) {
                IntArray header = ints(memory, block - 1, block);
                IntArray padded = ints(memory, block);
                FloatArray out = memory.floats(AMD_PAIRS * AMD_ROWS);
                Object[] reads = {header, sizes, ids, zero, padded, factor, ones, b, ones, ones, ones};
                runAmd(device, "probeAmd" + block, halves, 1, reads, out);
                for (int i = 0; i < (block - 1) * AMD_ROWS; i++) {
                    int expected = 0;
                    for (int k = 0; k < AMD_COLS; k++) {
                        expected += int8(a, i / AMD_ROWS * AMD_COLS + k) * amdWeight(b, halves, i % AMD_ROWS, k);
                    }
                    if (out.get(i) != expected) {
                        return wrong((int) out.get(i), expected);
                    }
                }
            }
            return null;
        }
    }

    /** A weight of a fragment, in the layout of {@code AmdWeights}. */
    private static int amdWeight(IntArray fragment, boolean halves, int row, int k) {
        int piece = halves ? k / 4 % 4 : k / 16;
        int at = (piece * AMD_ROWS + row) * 16;
        return halves ? (byte) (int8(fragment, at + k / 16 * 4 + k % 4) ^ 0x80) : int8(fragment, at + k % 16);
    }

    private static void runAmd(
            Device device, String name, boolean halves, int groups, Object[] reads, TornadoNativeArray out) {
        AccessorParameters parameters = new AccessorParameters(reads.length + 1);
        for (int i = 0; i < reads.length; i++) {
            parameters.set(i, reads[i], Access.READ_ONLY);
        }
        parameters.set(reads.length, out, Access.WRITE_ONLY);
        String head = "#define HALVES " + (halves ? 1 : 0) + "\n";
        String source = KernelSource.file(head + KernelSource.text("amd-gemm.cl"), "amd-gemm", ".cl")
                .toString();
        TaskGraph graph = new TaskGraph(name + (halves ? "Halves" : ""))
                .transferToDevice(DataTransferMode.EVERY_EXECUTION, reads)
                .prebuiltTask("kernel", "amdGemm", source, parameters)
                .transferToHost(DataTransferMode.EVERY_EXECUTION, out);
        run(device, graph, AMD_GROUP, groups);
    }

    private static IntArray ints(HostMemory memory, int... values) {
        IntArray array = memory.ints(values.length);
        for (int i = 0; i < values.length; i++) {
            array.set(i, values[i]);
        }
        return array;
    }

    /** Compiles a graph with one task and runs it as one work-group. */
    private static void run(Device device, TaskGraph graph) {
        run(device, graph, ProbeKernels.GROUP, 1);
    }

    private static void run(Device device, TaskGraph graph, int items, int groups) {
        WorkerGrid group = new WorkerGrid2D(items * groups, 1);
        group.setLocalWork(items, 1, 1);
        GridScheduler grids = new GridScheduler();
        grids.addWorkerGrid(graph.getTaskGraphName() + ".kernel", group);
        try (SignalHandlers.Step _ = SignalHandlers.step()) {
            TornadoExecutionPlan plan = new TornadoExecutionPlan(graph.snapshot());
            try {
                device.selectFor(plan);
                plan.withGridScheduler(grids);
                plan.execute();
                if (Quirks.HERE.zeroesOnAnotherStream(device.backend())) {
                    plan.execute(); // comes after the zeros
                }
            } finally {
                device.close(plan);
            }
        } catch (TornadoExecutionPlanException failure) {
            throw new MoeExecutionException(graph.getTaskGraphName() + " on " + device, failure);
        }
    }

    private static IntArray random(HostMemory memory, int count, long seed) {
        IntArray array = memory.ints(count);
        SplittableRandom random = new SplittableRandom(seed);
        for (int i = 0; i < count; i++) {
            array.set(i, random.nextInt());
        }
        return array;
    }

    /** One of the int8 values that are packed four per int, the first in the low byte. */
    private static byte int8(IntArray packed, int index) {
        return (byte) (packed.get(index / 4) >> (8 * (index % 4)));
    }

    private static String wrong(int got, int expected) {
        return "it computes " + got + " where " + expected + " is right";
    }
}
