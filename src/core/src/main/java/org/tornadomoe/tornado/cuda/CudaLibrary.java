package org.tornadomoe.tornado.cuda;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.Cleanup;
import org.tornadomoe.kernel.MoeExecutionException;
import org.tornadomoe.tornado.device.CudaDriver;
import org.tornadomoe.tornado.device.CudaDriver.Handle;
import org.tornadomoe.tornado.device.Quirks;
import org.tornadomoe.tornado.kernels.KernelSource;
import uk.ac.manchester.tornado.api.common.LibraryTaskDescriptor;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;
import uk.ac.manchester.tornado.runtime.common.TornadoXPUDevice;
import uk.ac.manchester.tornado.runtime.library.spi.LibraryContext;
import uk.ac.manchester.tornado.runtime.library.spi.LibraryInvocation;
import uk.ac.manchester.tornado.runtime.library.spi.TornadoLibraryProvider;
import uk.ac.manchester.tornado.runtime.library.spi.TornadoNativeStreamSupport;

/**
 * Runs {@link CudaKernel}s for TornadoVM, which finds this class as a service. The kernels run on the plan's own
 * stream, between its other tasks, and are recorded with them into a CUDA graph.
 */
public final class CudaLibrary implements TornadoLibraryProvider {
    private static final System.Logger LOG = System.getLogger(CudaLibrary.class.getName());

    private final CudaDriver driver;

    public CudaLibrary() {
        this(CudaDriver.NVIDIA);
    }

    CudaLibrary(CudaDriver driver) {
        this.driver = driver;
    }

    @Override
    public String libraryName() {
        return CudaTask.LIBRARY;
    }

    @Override
    public boolean canHandle(TornadoXPUDevice device) {
        return device instanceof TornadoNativeStreamSupport;
    }

    @Override
    public LibraryContext createContext(TornadoXPUDevice device, long executionPlanId) {
        TornadoNativeStreamSupport handles = (TornadoNativeStreamSupport) device;
        long context = handles.getNativeContext(executionPlanId);
        driver.setContext(context);
        int current = driver.currentDevice();
        int expected = device.getDeviceContext().getDeviceIndex();
        if (current != expected) {
            throw new MoeExecutionException("TornadoVM would run on GPU " + current + " what is for GPU " + expected);
        }
        return new Plan(driver, context, handles.getNativeStream(executionPlanId), current);
    }

    @Override
    public void prepare(LibraryTaskDescriptor descriptor, LibraryContext context) {
        ((Plan) context).prepare((CudaTask) Objects.requireNonNull(descriptor.getTuning()));
    }

    @Override
    public void dispatch(String functionName, LibraryInvocation invocation) {
        ((Plan) invocation.getContext()).run((CudaTask) Objects.requireNonNull(invocation.getTuning()), invocation);
    }

    @Override
    public void destroyContext(LibraryContext context) {
        ((Plan) context).close();
    }

    /** The kernels of one execution plan; one thread at a time. */
    private static final class Plan implements LibraryContext {
        private static final long DEFAULT_STREAM = 0;

        /** The number of launches that a kernel keeps. */
        private static final int MOST_SIZES = 32;

        private final CudaDriver driver;
        private final long context;
        private final int device;
        private final int computeCapability;

        /** The stream of the last call's thread; TornadoVM gives each thread that executes a plan its own stream. */
        private long stream;

        private final Map<List<Object>, Long> modules = new HashMap<>();
        private final Map<Long, Integer> sharedBytes = new HashMap<>();
        private final Map<CudaTask, Bound> bounds = new HashMap<>();
        private final Arena arena = Arena.ofShared();

        /** The copied arrays' memory, as far as this plan has pinned it. */
        private final List<MemorySegment> pinned = new ArrayList<>();

        /** Launches that no kernel needs any more, for reuse. */
        private final List<Sized> spare = new ArrayList<>();

        Plan(CudaDriver driver, long context, long stream, int device) {
            this.driver = driver;
            this.context = context;
            this.stream = stream;
            this.device = device;
            computeCapability = driver.computeCapability(device);
        }

        /**
         * In a task's first execution, waits until TornadoVM has zeroed its arrays, {@link
         * Quirks#zeroesOnAnotherStream}. This is after the allocation of the arrays, which may be new even if the plan
         * had earlier tasks, and before the task's first kernel. While a CUDA graph is recorded nothing may wait, but
         * the task was prepared earlier.
         */
        void prepare(CudaTask task) {
            driver.setContext(context);
            Bound bound = bounds.computeIfAbsent(task, Bound::new);
            if (!bound.ran && !driver.isRecording(stream)) {
                driver.await(DEFAULT_STREAM);
            }
            bound.resize();
        }

        void run(CudaTask task, LibraryInvocation invocation) {
            Bound bound = Objects.requireNonNull(bounds.get(task), "a task that wasn't prepared");
            long now = ((TornadoNativeStreamSupport) invocation.getDevice())
                    .getNativeStream(invocation.getExecutionPlanId());
            stream = now; // needed for the order with the plan's Java tasks
            bound.point(invocation);
            bound.run();
            task.replayBy(bound);
            bound.ran = true;
        }

        /**
         * Pins an array as long as the plan is open. TornadoVM's own pins end when any plan is closed ({@link Quirks});
         * it pins an array when it allocates the device's copy, a task is prepared before that, and what is pinned by
         * then it leaves alone.
         */
        private void pin(TornadoNativeArray array) {
            MemorySegment memory = array.getSegmentWithHeader();
            try {
                if (driver.pin(memory)) {
                    pinned.add(memory);
                }
            } catch (MoeExecutionException refused) {
                LOG.log(System.Logger.Level.DEBUG, "GPU " + device + " copies from and to pageable memory", refused);
            }
        }

        private long module(String source, List<String> options) {
            return modules.computeIfAbsent(
                    List.of(source, options),
                    key -> driver.loadModule(driver.compile(KernelSource.text(source), forHere(options))));
        }

        /** Adds the option for the device's architecture, unless the options name one. */
        private List<String> forHere(List<String> options) {
            return options.stream().anyMatch(option -> option.startsWith(CudaDriver.ARCHITECTURE))
                    ? options
                    : Stream.concat(Stream.of(CudaDriver.architecture(computeCapability)), options.stream())
                            .toList();
        }

        void close() {
            bounds.keySet().forEach(task -> task.replayBy(null));
            Cleanup.all(
                    () -> driver.setContext(context),
                    () -> Cleanup.each(pinned, driver::unpin),
                    pinned::clear,
                    () -> Cleanup.each(modules.values(), driver::unloadModule),
                    modules::clear,
                    bounds::clear,
                    arena::close);
        }

        /** A task and its driver arguments, which stay the same from call to call where possible. */
        private final class Bound implements CudaTask.Replay {
            final List<Step> steps;

            /** The task's steps, in the same order. */
            private final List<CudaStep> told;

            /** Whether something comes back from the device, so that the caller must wait. */
            final boolean answers;

            private final CudaTask task;
            private int tokens = -1;
            private int launch = -1;

            /** Whether all its arrays are on the device. */
            private boolean ran;

            Bound(CudaTask task) {
                this.task = task;
                told = task.steps().stream()
                        .filter(step -> !(step instanceof CudaStep.Wait))
                        .toList();
                steps = told.stream()
                        .map(step -> switch (step) {
                            case CudaKernel kernel -> new Kernel(kernel, task);
                            case CudaStep.Copy copy -> new Copying(copy, task);
                            case CudaStep.Wait wait -> throw new IllegalArgumentException(wait.name());
                        })
                        .toList();
                answers =
                        task.steps().stream().anyMatch(step -> step instanceof CudaStep.Copy copy && !copy.toDevice());
            }

            void resize() {
                int m = task.tokens();
                if (tokens != m || launch != task.launch()) {
                    tokens = -1; // if one of them fails, all must be set again
                    steps.forEach(step -> step.resize(m, task.launch()));
                    tokens = m;
                    launch = task.launch();
                }
            }

            void point(LibraryInvocation invocation) {
                steps.forEach(step -> step.point(invocation));
            }

            @Override
            public void begin() {
                driver.setContext(context);
                resize();
            }

            @Override
            public List<CudaStep> steps() {
                return told;
            }

            @Override
            public void enqueue(int step, int firstToken) {
                steps.get(step).enqueue(firstToken);
            }

            @Override
            public void enqueue(int step, IdentityHashMap<Object, Long> elsewhere) {
                ((Kernel) steps.get(step)).enqueue(elsewhere);
            }

            @Override
            public void await() {
                driver.await(stream);
            }

            @Override
            public CudaDriver driver() {
                return driver;
            }

            @Override
            public long context() {
                return context;
            }

            @Override
            public long stream() {
                return stream;
            }

            @Override
            public long address(TornadoNativeArray array) {
                return steps.stream()
                        .filter(step -> step instanceof Copying copying && copying.copy.array() == array)
                        .map(step -> ((Copying) step).address)
                        .findFirst()
                        .orElseThrow(() -> new IllegalArgumentException("array: expected one that is copied"));
            }

            @Override
            public void run() {
                begin();
                Map<String, Long> times = task.times();
                try {
                    if (times != null) {
                        time(times);
                    } else {
                        steps.forEach(step -> step.enqueue(0));
                    }
                } catch (RuntimeException | Error failure) {
                    // Nothing may be running when the arrays are used again.
                    Cleanup.after(failure, this::await);
                    throw failure;
                }
                if (answers) {
                    await();
                }
            }

            /**
             * Times each kernel separately, with a cold cache. The cache is emptied by reading: what was written to
             * it would have to be written to memory while the kernel runs. This also keeps the device busy until the
             * kernel is on the stream, so that no host time is included.
             */
            void time(Map<String, Long> times) {
                int bytes = Math.multiplyExact(4, driver.cacheBytes(device));
                long sweep = driver.function(module("clock.cu", List.of()), "sweep");
                try (Handle zeros = new Handle(driver.allocate(bytes), driver::free);
                        Handle begin = new Handle(driver.event(), driver::destroyEvent);
                        Handle end = new Handle(driver.event(), driver::destroyEvent);
                        Arena launch = Arena.ofConfined()) {
                    driver.clear(zeros.value(), bytes, stream);
                    MemorySegment how = CudaDriver.allocateLaunch(launch);
                    CudaDriver.fillLaunch(how, 8 * driver.multiprocessors(device), 1, 256, 0, stream);
                    CudaDriver.startAlone(how);
                    MemorySegment values = launch.allocateFrom(ValueLayout.JAVA_LONG, zeros.value(), bytes / 16);
                    MemorySegment parameters = launch.allocate(ValueLayout.ADDRESS, 2);
                    parameters.setAtIndex(ValueLayout.ADDRESS, 0, values);
                    parameters.setAtIndex(ValueLayout.ADDRESS, 1, values.asSlice(8));
                    for (Step step : steps) {
                        if (step instanceof Kernel kernel && kernel.sized.function != 0) {
                            driver.launch(how, sweep, parameters);
                            driver.record(begin.value(), stream);
                            step.enqueue(0);
                            driver.record(end.value(), stream);
                            driver.await(stream);
                            times.put(kernel.kernel.name(), driver.nanosBetween(begin.value(), end.value()));
                        } else {
                            step.enqueue(0);
                        }
                    }
                }
            }
        }

        /** One step of a task. */
        private interface Step {
            void resize(int tokens, int number);

            /** Sets the addresses of its arrays. */
            void point(LibraryInvocation invocation);

            /** @param firstToken where its tokens begin in the arrays that are copied by tokens */
            void enqueue(int firstToken);
        }

        /** A kernel's launch for M tokens; the function is 0 if nothing is launched. */
        private record Sized(long function, MemorySegment how) {
            static final Sized NONE = new Sized(0, MemorySegment.NULL);
        }

        private final class Kernel implements Step {
            private final CudaKernel kernel;

            /** The indices of the first parameters' arrays among the task's arrays. */
            private final int[] places;

            /** The copy step of each array that is copied by tokens; null for the others. */
            private final CudaStep.@Nullable Copy[] copies;

            private final long[] addresses;
            private final MemorySegment values;
            private final MemorySegment parameters;
            private final Map<String, Long> functions = new HashMap<>();

            /** By M and the launch's number: calls in chunks need the same few again and again. */
            private final Map<Long, Sized> sizes = new HashMap<>();

            private Sized sized = Sized.NONE;

            Kernel(CudaKernel kernel, CudaTask task) {
                this.kernel = kernel;
                List<Object> all = kernel.parameters();
                places = all.stream()
                        .limit(all.size() - kernel.scalars().size())
                        .mapToInt(task::indexOf)
                        .toArray();
                addresses = new long[places.length];
                copies = all.stream().limit(places.length).map(task::copyOf).toArray(CudaStep.Copy[]::new);
                values = arena.allocate(ValueLayout.JAVA_LONG, all.size());
                parameters = arena.allocate(ValueLayout.ADDRESS, all.size());
                for (int i = 0; i < all.size(); i++) {
                    if (all.get(i) instanceof Float number) {
                        values.set(ValueLayout.JAVA_FLOAT, 8L * i, number);
                    } else if (all.get(i) instanceof Integer number) {
                        values.set(ValueLayout.JAVA_INT, 8L * i, number);
                    }
                    parameters.setAtIndex(ValueLayout.ADDRESS, i, values.asSlice(8L * i));
                }
            }

            @Override
            public void resize(int tokens, int number) {
                long key = (long) number << 32 | tokens;
                Sized known = sizes.get(key);
                if (known == null) {
                    known = size(kernel.launch().apply(tokens));
                    if (sizes.size() == MOST_SIZES) { // the plan owns their memory until it is closed
                        sizes.values().stream().filter(old -> old != Sized.NONE).forEach(spare::add);
                        sizes.clear();
                    }
                    sizes.put(key, known);
                }
                sized = known;
            }

            private Sized size(CudaKernel.Launch launch) {
                if (launch.equals(CudaKernel.Launch.NONE)) {
                    return Sized.NONE;
                }
                long function = functions.computeIfAbsent(
                        launch.entryPoint(), name -> driver.function(module(kernel.source(), kernel.options()), name));
                // Another layer of the plan may need more.
                int shared = sharedBytes.merge(function, launch.sharedBytes(), Math::max);
                try {
                    driver.allowSharedBytes(function, shared);
                } catch (MoeExecutionException failure) {
                    throw new MoeExecutionException(
                            kernel.name() + ", " + launch.entryPoint() + ": " + shared + " bytes of shared memory: "
                                    + failure.getMessage(),
                            failure);
                }
                int gridX = launch.gridX() == CudaKernel.ALL_MULTIPROCESSORS
                        ? driver.multiprocessors(device)
                        : launch.gridX();
                MemorySegment how = spare.isEmpty() ? CudaDriver.allocateLaunch(arena) : spare.removeLast().how;
                CudaDriver.fillLaunch(how, gridX, launch.gridY(), launch.group(), launch.sharedBytes(), stream);
                if (computeCapability < CudaDriver.EARLY_LAUNCHES) {
                    CudaDriver.startAlone(how);
                }
                return new Sized(function, how);
            }

            @Override
            public void point(LibraryInvocation invocation) {
                for (int i = 0; i < places.length; i++) {
                    addresses[i] = invocation.getDevicePointer(places[i]);
                }
            }

            @Override
            public void enqueue(int firstToken) {
                if (sized.function == 0) {
                    return;
                }
                for (int i = 0; i < addresses.length; i++) {
                    CudaStep.Copy copy = copies[i];
                    long before = copy == null || firstToken == 0 ? 0 : copy.bytesBefore(firstToken);
                    values.setAtIndex(ValueLayout.JAVA_LONG, i, addresses[i] + before);
                }
                launch();
            }

            void enqueue(IdentityHashMap<Object, Long> elsewhere) {
                if (sized.function == 0) {
                    return;
                }
                List<Object> arrays = kernel.parameters();
                for (int i = 0; i < addresses.length; i++) {
                    values.setAtIndex(ValueLayout.JAVA_LONG, i, elsewhere.getOrDefault(arrays.get(i), addresses[i]));
                }
                launch();
            }

            private void launch() {
                CudaDriver.putOn(sized.how, stream);
                driver.launch(sized.how, sized.function, parameters);
            }
        }

        private final class Copying implements Step {
            private final CudaStep.Copy copy;
            private final int place;
            private int tokens;
            private long address;

            Copying(CudaStep.Copy copy, CudaTask task) {
                this.copy = copy;
                place = task.indexOf(copy.array());
                pin(copy.array());
            }

            @Override
            public void resize(int tokens, int number) {
                this.tokens = tokens;
            }

            @Override
            public void point(LibraryInvocation invocation) {
                address = invocation.getDevicePointer(place);
            }

            @Override
            public void enqueue(int firstToken) {
                long before = copy.bytesBefore(firstToken);
                long bytes = 4 * copy.elements().applyAsLong(tokens);
                MemorySegment here = copy.array().getSegment().asSlice(before);
                if (bytes > 0 && copy.toDevice()) {
                    driver.copyToDevice(address + before, here, bytes, stream);
                } else if (bytes > 0) {
                    driver.copyFromDevice(here, address + before, bytes, stream);
                }
            }
        }
    }
}
