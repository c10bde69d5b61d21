package org.tornadomoe.tornado;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import uk.ac.manchester.tornado.api.common.LibraryTaskDescriptor;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.runtime.common.TornadoXPUDevice;
import uk.ac.manchester.tornado.runtime.library.spi.LibraryContext;
import uk.ac.manchester.tornado.runtime.library.spi.LibraryInvocation;
import uk.ac.manchester.tornado.runtime.library.spi.TornadoLibraryProvider;
import uk.ac.manchester.tornado.runtime.library.spi.TornadoNativeStreamSupport;

/**
 * Runs {@link CudaKernel}s for TornadoVM, which finds this class as a service: on the plan's own stream, between its other tasks, and
 * recorded with them into a CUDA graph.
 */
public final class CudaLibrary implements TornadoLibraryProvider {
    static final String NAME = "tornado-moe";

    @Override
    public String libraryName() {
        return NAME;
    }

    @Override
    public boolean canHandle(TornadoXPUDevice device) {
        return device instanceof TornadoNativeStreamSupport;
    }

    @Override
    public LibraryContext createContext(TornadoXPUDevice device, long executionPlanId) {
        TornadoNativeStreamSupport handles = (TornadoNativeStreamSupport) device;
        return new Plan(handles.getNativeContext(executionPlanId), handles.getNativeStream(executionPlanId));
    }

    @Override
    public void prepare(LibraryTaskDescriptor descriptor, LibraryContext context) {
        CudaKernel kernel = (CudaKernel) Objects.requireNonNull(descriptor.getTuning());
        ((Plan) context)
                .function(kernel, kernel.launch().apply(tokens(descriptor.getParameters()[0])));
    }

    @Override
    public void dispatch(String functionName, LibraryInvocation invocation) {
        ((Plan) invocation.getContext())
                .launch((CudaKernel) Objects.requireNonNull(invocation.getTuning()), invocation);
    }

    @Override
    public void destroyContext(LibraryContext context) {
        ((Plan) context).close();
    }

    /** What the header says here, where the kernel's copy of it is from. */
    private static int tokens(Object header) {
        return ((IntArray) header).get(0);
    }

    /** The kernels of one execution plan, which one thread uses at a time. */
    private static final class Plan implements LibraryContext {
        private final long context;
        private final long stream;
        private final int multiprocessors;
        private final Map<List<Object>, Long> modules = new HashMap<>();
        private final Map<List<Object>, Long> functions = new HashMap<>();

        Plan(long context, long stream) {
            this.context = context;
            this.stream = stream;
            CudaDriver.setContext(context);
            multiprocessors = CudaDriver.multiprocessors(CudaDriver.currentDevice());
        }

        long function(CudaKernel kernel, CudaKernel.Launch launch) {
            return functions.computeIfAbsent(List.of(kernel.source(), kernel.options(), launch.entryPoint()), key -> {
                CudaDriver.setContext(context);
                long module = modules.computeIfAbsent(
                        List.of(kernel.source(), kernel.options()),
                        k -> CudaDriver.loadModule(CudaDriver.compile(kernel.text(), kernel.options())));
                return CudaDriver.function(module, launch.entryPoint(), launch.sharedBytes());
            });
        }

        void launch(CudaKernel kernel, LibraryInvocation invocation) {
            CudaKernel.Launch launch = kernel.launch().apply(tokens(invocation.getArg(0)));
            try (Arena arena = Arena.ofConfined()) {
                int count = invocation.getNumArgs();
                MemorySegment values = arena.allocate(ValueLayout.JAVA_LONG, count);
                MemorySegment pointers = arena.allocate(ValueLayout.ADDRESS, count);
                for (int i = 0; i < count; i++) {
                    long at = 8L * i;
                    if (invocation.isReference(i)) {
                        values.set(ValueLayout.JAVA_LONG, at, invocation.getDevicePointer(i));
                    } else if (invocation.getArg(i) instanceof Float number) {
                        values.set(ValueLayout.JAVA_FLOAT, at, number);
                    } else {
                        values.set(ValueLayout.JAVA_INT, at, (Integer) invocation.getArg(i));
                    }
                    pointers.setAtIndex(ValueLayout.ADDRESS, i, values.asSlice(at));
                }
                CudaDriver.launch(
                        function(kernel, launch),
                        launch.gridX() == CudaKernel.ALL_MULTIPROCESSORS ? multiprocessors : launch.gridX(),
                        launch.gridY(),
                        launch.group(),
                        launch.sharedBytes(),
                        stream,
                        pointers);
            }
        }

        void close() {
            CudaDriver.setContext(context);
            modules.values().forEach(CudaDriver::unloadModule);
            modules.clear();
            functions.clear();
        }
    }
}
