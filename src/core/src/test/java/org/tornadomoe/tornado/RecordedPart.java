package org.tornadomoe.tornado;

import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.function.LongSupplier;
import java.util.stream.IntStream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.config.FusedMoeConfig;
import org.tornadomoe.host.DeviceThread;
import org.tornadomoe.quant.Int8Experts;
import org.tornadomoe.tornado.cuda.CudaLibrary;
import org.tornadomoe.tornado.cuda.CudaTask;
import org.tornadomoe.tornado.cuda.RecordingDriver;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.FakeGpu;
import org.tornadomoe.tornado.device.HostMemory;
import org.tornadomoe.tornado.device.OpenPlan;
import org.tornadomoe.tornado.graph.HopperGemm;
import org.tornadomoe.tornado.graph.LayerArrays;
import org.tornadomoe.tornado.graph.Stage;
import uk.ac.manchester.tornado.api.GridScheduler;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.TornadoDeviceContext;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.common.LibraryTaskDescriptor;
import uk.ac.manchester.tornado.api.common.TornadoFunctions.LibraryTask1;
import uk.ac.manchester.tornado.runtime.common.TornadoXPUDevice;
import uk.ac.manchester.tornado.runtime.library.spi.LibraryContext;
import uk.ac.manchester.tornado.runtime.library.spi.LibraryInvocation;
import uk.ac.manchester.tornado.runtime.library.spi.TornadoNativeStreamSupport;

/** A layer with Hopper's kernels on no GPU: TornadoVM's side is this class, CUDA's a {@link RecordingDriver}. */
public final class RecordedPart {
    private static final long PLAN = 5;

    /** TornadoVM's graph, which keeps library tasks and what comes back. */
    static final class Tasks extends TaskGraph {
        final List<LibraryTaskDescriptor> library = new ArrayList<>();
        final List<Object> toHost = new ArrayList<>();

        Tasks() {
            super("moe");
        }

        @Override
        public <T1> TaskGraph libraryTask(String id, LibraryTask1<T1> code, T1 arg1) {
            library.add(code.apply(arg1));
            return this;
        }

        @Override
        public TaskGraph transferToHost(int mode, Object... objects) {
            toHost.addAll(List.of(objects));
            return this;
        }
    }

    final long context;
    public final LayerArrays arrays;
    public final TornadoMoeKernel kernel;
    public final LibraryTaskDescriptor task;
    public final CudaTask cudaTask;

    /** The arrays that are in a transfer from the device. */
    final List<Object> toHost;

    private final CudaLibrary library;
    private final TornadoXPUDevice device;
    private final LibraryContext plan;

    /** Of the thread that calls: TornadoVM has one for each. */
    private long stream;

    /** Loaded, without a call yet, in a context with one stream of the device of that index. */
    public RecordedPart(
            RecordingDriver driver, int index, long context, long stream, FusedMoeConfig config, Int8Experts experts) {
        this(
                driver,
                index,
                context,
                stream,
                config,
                experts,
                null,
                new TornadoExecutionPlan(new TaskGraph("nothing").snapshot()));
    }

    /** The same with a plan, which runs nothing, and the thread that executes it. */
    RecordedPart(
            RecordingDriver driver,
            int index,
            long context,
            long stream,
            FusedMoeConfig config,
            Int8Experts experts,
            @Nullable DeviceThread thread,
            TornadoExecutionPlan empty) {
        this.context = context;
        driver.add(context, stream, index);
        arrays = arrays(config, experts);
        Tasks tasks = new Tasks();
        Device device = FakeGpu.of(index);
        Stage.Graph graph = new Stage.Graph(
                device, tasks, new GridScheduler(), "", Families.program(arrays).call(), new ArrayList<>());
        graph.addTasks();
        graph.keepOnDevice(graph.outputs());
        toHost = tasks.toHost;
        cudaTask = graph.cudaTasks().getFirst();
        task = tasks.library.getFirst();
        kernel = new TornadoMoeKernel(
                device, new HopperGemm(), arrays, thread, new LayerPlan(device, thread, graph, new OpenPlan(empty)));
        library = driver.library();
        this.stream = stream;
        this.device = handles(index, context, () -> this.stream);
        plan = library.createContext(this.device, PLAN);
    }

    public static LayerArrays arrays(FusedMoeConfig config, Int8Experts experts) {
        return new LayerArrays(
                config,
                experts,
                Long.MAX_VALUE,
                HostMemory.of(false),
                new HopperGemm(),
                !config.isLoraEnabled(),
                new HopperGemm().byRule(config),
                Map.of());
    }

    /** A device as TornadoVM's runtime sees it, with the driver's handles. */
    public static TornadoXPUDevice handles(int index, long context, LongSupplier stream) {
        return (TornadoXPUDevice) Proxy.newProxyInstance(
                RecordedPart.class.getClassLoader(),
                new Class<?>[] {TornadoXPUDevice.class, TornadoNativeStreamSupport.class},
                (_, method, _) -> switch (method.getName()) {
                    case "getNativeContext" -> context;
                    case "getNativeStream" -> stream.getAsLong();
                    case "getDeviceContext" -> deviceContext(index);
                    default -> throw new UnsupportedOperationException(method.getName());
                });
    }

    private static Object deviceContext(int index) {
        return Proxy.newProxyInstance(
                RecordedPart.class.getClassLoader(), new Class<?>[] {TornadoDeviceContext.class}, (_, method, _) -> {
                    if (method.getName().equals("getDeviceIndex")) {
                        return index;
                    }
                    throw new UnsupportedOperationException(method.getName());
                });
    }

    /** From now on another thread calls. */
    public void calledFromStream(long other) {
        stream = other;
    }

    /** What TornadoVM does before every launch of the task. */
    public void prepare() {
        library.prepare(task, plan);
    }

    /** The launch. */
    public void dispatch() {
        Object[] parameters = task.getParameters();
        library.dispatch(
                task.getFunctionName(),
                new LibraryInvocation(
                        parameters,
                        IntStream.range(0, parameters.length)
                                .mapToLong(this::address)
                                .toArray(),
                        new boolean[parameters.length],
                        device,
                        PLAN,
                        plan,
                        task.getTuning()));
    }

    /** The first call, which is TornadoVM's. */
    public RecordedPart called(int tokens) {
        arrays.setTokens(tokens);
        prepare();
        dispatch();
        return this;
    }

    /** Where a parameter of the task is on the device. */
    private long address(int parameter) {
        return (context << 32) + ((long) parameter << 24);
    }

    long address(Object array) {
        return address(cudaTask.indexOf(array));
    }

    /** TornadoVM closes its plan. */
    public void destroyPlan() {
        library.destroyContext(plan);
    }

    /** As the driver is told it: an address, or a number's bits. */
    public static long bits(Object parameter, @Nullable RecordedPart part) {
        return parameter instanceof Integer number
                ? Integer.toUnsignedLong(number)
                : parameter instanceof Float number
                        ? Integer.toUnsignedLong(Float.floatToRawIntBits(number))
                        : Objects.requireNonNull(part).address(parameter);
    }
}
