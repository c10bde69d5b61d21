package org.tornadomoe.tornado.device;

import java.lang.module.ModuleDescriptor;
import java.lang.module.ModuleReference;
import java.lang.module.ResolvedModule;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.net.URI;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.MoeExecutionException;
import uk.ac.manchester.tornado.api.TornadoDeviceContext;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.common.TornadoDevice;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;
import uk.ac.manchester.tornado.api.runtime.TornadoRuntimeProvider;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * The differences between TornadoVM versions and their workarounds, each with the versions known to have it and the
 * upstream issue number. Layers have run on {@value #TRIED}; facts about later versions come from their release notes,
 * pull requests and tests.
 *
 * <p>Quirks that are handled elsewhere, and where:
 *
 * <ul>
 *   <li>PTX (5.2) gets a byte's sign extension wrong: worked around in {@code GemmKernels.int8}, which is compiled for
 *       the device and can't call other code.
 *   <li>A method that gets a local array as an argument computes wrong results (5.2): no kernel has such a method,
 *       which the build checks.
 *   <li>Closing a plan frees only arrays that are in one of its transfers (5.2): the graph's {@code keepOnDevice} names
 *       all. It doesn't free the memory of a graph's {@code KernelContext}, 312 bytes on CUDA: a graph's tasks have one
 *       between them.
 *   <li>Closing a plan unpins all host arrays that TornadoVM has pinned, those of other plans, too, so that copies from
 *       and to them wait for the host from then on (CUDA, 5.2, {@code CUDAPinnedMemoryRegistry.unpinAll}): {@code
 *       CudaLibrary} pins what it copies beforehand, and TornadoVM leaves that alone.
 *   <li>Fetching an array that its graph names in no transfer copies all of the graph's arrays to the host, even over
 *       boxed scalars that the JVM shares (CUDA, 5.2): only named arrays are fetched.
 *   <li>Kernels that fail to compile run as sequential Java (5.2 and 6.0, #1067; no longer the default since #1107):
 *       {@link TornadoHome#bailoutsAreErrors}.
 *   <li>TornadoVM checks kernels for the backend with the highest priority, by default OpenCL, which has neither dp4a
 *       nor tensor cores (5.2 to 7): the launcher and docs/java.md set {@code tornado.cuda.priority} and {@code
 *       tornado.ptx.priority}.
 *   <li>{@code simdShuffleDown} compiles on OpenCL and computes wrong numbers (7): no kernel shuffles, which the build
 *       checks.
 *   <li>int8 fragments' own loads have no offset, and accumulators leave a kernel for memory only (5.2; otherwise from
 *       7.0 on, #1094, #1101): {@code FragmentGemmKernels} loads through FP16's loads, which have one, and stores sums.
 * </ul>
 *
 * @param version in TornadoVM's format, {@code 8.2.0-jdk22plus}; null without its SDK
 */
public record Quirks(@Nullable String version) {
    /** The version on which layers have run. */
    static final String TRIED = "5.2.0";

    /** The quirks of this JVM's TornadoVM. */
    public static final Quirks HERE = new Quirks(find());

    /**
     * The maximum number of nodes of a TornadoVM graph (5.2), however TornadoVM is started. Each task is a node, and so
     * is each array that a task writes.
     */
    static final int GRAPH_NODES = 1024;

    /** The maximum number of bytes of a graph's bytecode (5.2), however TornadoVM is started. */
    public static final int GRAPH_CODE_BYTES = 8 * 1024;

    private static final Pattern NUMBERS = Pattern.compile("(\\d+)(?:\\.(\\d+))?.*");

    /** The version, from the API's module descriptor or else its jar's name. */
    private static @Nullable String find() {
        Module api = TornadoRuntimeProvider.class.getModule();
        ModuleDescriptor descriptor = api.getDescriptor();
        if (descriptor == null) {
            return null;
        }
        return descriptor
                .rawVersion()
                .orElseGet(() -> Optional.ofNullable(api.getLayer())
                        .flatMap(layer -> layer.configuration().findModule(api.getName()))
                        .map(ResolvedModule::reference)
                        .flatMap(ModuleReference::location)
                        .map(Quirks::ofJar)
                        .orElse(null));
    }

    /**
     * The version in a jar's name: {@code 8.2.0-jdk22plus} for {@code file:/.../tornado-api-8.2.0-jdk22plus.jar}; null
     * if there is none.
     */
    static @Nullable String ofJar(URI jar) {
        Matcher name = Pattern.compile(".*/tornado-api-(\\d.*)\\.jar").matcher(jar.toString());
        return name.matches() ? name.group(1) : null;
    }

    /** Whether it has at least that version. An unknown version counts as the oldest known one. */
    boolean isAtLeast(int major, int minor) {
        Matcher numbers = NUMBERS.matcher(version == null ? TRIED : version);
        if (!numbers.matches()) {
            return false;
        }
        int here = Integer.parseInt(numbers.group(1));
        int minorHere = numbers.group(2) == null ? 0 : Integer.parseInt(numbers.group(2));
        return here > major || (here == major && minorHere >= minor);
    }

    /** Whether it is newer than every version on which a layer has run. */
    boolean isUntried() {
        return isAtLeast(5, 3);
    }

    /**
     * The byte offset of an array's first value in its CUDA memory. Up to 6.0 it is the header's size. From 6.1 on
     * (#1066) the values begin at a multiple of 32, and the header, whose size constant is unchanged, is right before
     * them.
     */
    public int payload() {
        int header = Math.toIntExact(TornadoNativeArray.ARRAY_HEADER);
        return isAtLeast(6, 1) ? Math.ceilDiv(header, 32) * 32 : header;
    }

    /**
     * Whether TornadoVM confuses each prebuilt task of a graph with the graph's first task and runs that one's code:
     * before 6.0, where such a task wasn't equal to itself (#1049).
     */
    public boolean takesPrebuiltTasksForTheFirst() {
        return !isAtLeast(6, 0);
    }

    /**
     * Whether an array's pages may stay pinned after the array is freed, as on PTX (5.2; later versions have no PTX,
     * #872). A later array at that address is then silently transferred from and to the wrong pages or, if it is longer
     * than the pinned range, not at all.
     */
    boolean leavesArraysPinned(String backend) {
        return backend.equals(Device.PTX);
    }

    /**
     * Whether TornadoVM zeroes buffers that tasks only write when it allocates them, right before their first task, on
     * CUDA's default stream, without waiting. Nothing orders a plan's own stream after the default stream, so the zeros
     * can arrive after a kernel's values; they do if several processes share a GPU (CUDA, 5.2; unknown for later
     * versions).
     */
    public boolean zeroesOnAnotherStream(String backend) {
        return backend.equals(Device.CUDA);
    }

    /** Whether a backend reports the grid's size as the work-group's size: PTX does (5.2). */
    static boolean reportsGridAsGroup(String backend) {
        return backend.equals(Device.PTX);
    }

    /**
     * The name that PTX (5.2) looks for in a prebuilt task's source; it contains the task's name and the arguments'
     * types.
     */
    public static String ptxName(String graph, String task, String entryPoint, List<Object> arguments) {
        StringBuilder name = new StringBuilder(graph + "_" + task + "_" + entryPoint);
        arguments.forEach(
                array -> name.append("_arrays_").append(array.getClass().getSimpleName()));
        return name.toString().toLowerCase(Locale.ROOT);
    }

    /**
     * Makes sure that a graph's arrays have different hash codes. TornadoVM (5.2) finds a graph's objects by them alone
     * ({@code TornadoExecutionContext.insertVariable}), and would use one array for two. They are random numbers of 31
     * bits, or of 25 with compact object headers.
     *
     * @param known the graph's arrays by hash code; receives the new ones
     * @throws MoeExecutionException if two are the same; new arrays will have others
     */
    public static void requireOtherHashes(Map<Integer, Object> known, Iterable<?> arrays) {
        for (Object array : arrays) {
            Object other = known.putIfAbsent(array.hashCode(), array);
            if (other != null && other != array) {
                throw new MoeExecutionException("TornadoVM would take two of the graph's " + known.size()
                        + " arrays for one, because their hash codes are the same by chance: make the graph again");
            }
        }
    }

    /**
     * Clears a device's reset mark. Closing a plan marks its whole device as reset (5.2 and 6), and the device then
     * refuses every other plan that was compiled before. In later versions the mark belongs to the plan, and the method
     * that clears it doesn't exist.
     */
    static void takeResetBack(TornadoDeviceContext context) {
        call(TornadoDeviceContext.class, "setResetToFalse", context);
    }

    /**
     * Closes a plan on the thread that ran it, while no other runs on the device. To destroy the CUDA graph that a plan
     * replays, the device uses the queue of the first plan that it finds (CUDA, from 5.2 on). If that is another plan,
     * it makes a queue for this thread in that plan and never frees it, so every closed plan with such a graph would
     * leak memory on the host and on the GPU. Therefore only this plan is registered with the device meanwhile.
     */
    static void close(TornadoExecutionPlan plan, TornadoDeviceContext context) throws TornadoExecutionPlanException {
        Set<Long> known = context.getRegisteredPlanIds();
        List<Long> others;
        synchronized (known) { // the device's own set, which other threads that compile plans add to
            others = known.stream().filter(id -> id != plan.getId()).toList();
        }
        try {
            others.forEach(known::remove);
            plan.close();
        } finally {
            others.forEach(known::add);
        }
    }

    /**
     * Makes a device's CUDA context current on the calling thread, if each device has its own context (from 7 on,
     * because NCCL needs it).
     *
     * @return false if TornadoVM can't, because its GPUs share one context: see {@link CudaContexts}
     */
    static boolean enterOwnContext(TornadoDevice device) {
        for (Class<?> type = device.getClass(); type != null; type = type.getSuperclass()) {
            for (Class<?> offered : type.getInterfaces()) {
                if (call(offered, "makeNativeContextCurrent", device)) {
                    return true;
                }
            }
        }
        return false;
    }

    /**
     * Calls a method that not every version has; returns false if this one lacks it. The method must be public, in an
     * exported package.
     */
    private static boolean call(Class<?> type, String name, Object on) {
        try {
            Method method = type.getMethod(name);
            method.invoke(on);
            return true;
        } catch (NoSuchMethodException | IllegalAccessException none) {
            return false;
        } catch (InvocationTargetException failure) {
            if (failure.getCause() instanceof Error error) {
                throw error;
            }
            throw failure.getCause() instanceof RuntimeException cause ? cause : new IllegalStateException(failure);
        }
    }
}
