package org.tornadomoe.tornado.device;

import java.lang.module.ModuleDescriptor;
import java.lang.module.ModuleReference;
import java.lang.module.ResolvedModule;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.net.URI;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.Set;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;
import uk.ac.manchester.tornado.api.TornadoDeviceContext;
import uk.ac.manchester.tornado.api.TornadoExecutionPlan;
import uk.ac.manchester.tornado.api.common.TornadoDevice;
import uk.ac.manchester.tornado.api.exceptions.TornadoExecutionPlanException;
import uk.ac.manchester.tornado.api.runtime.TornadoRuntimeProvider;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * What versions of TornadoVM do differently, and what is worked around, each with the versions it is known of and
 * upstream's number. Layers have run on {@value #TRIED}; what stands here of later versions was read in their release
 * notes, pull requests and tests.
 *
 * <p>What can't stand here, and why:
 *
 * <ul>
 *   <li>PTX (5.2) gets a sign extension of a byte wrong: {@code GemmKernels.int8}, which is compiled for the device and
 *       calls nothing else.
 *   <li>A method that is given a local array computes something else (5.2): no kernel has one, which the build checks.
 *   <li>With a plan only the arrays that are in one of its transfers are freed (5.2): the
 *       graph's {@code keepOnDevice} names all.
 *   <li>An array that is fetched and that its graph names in no transfer has all that the graph has copied to the host,
 *       over boxed scalars, too, which the JVM shares (CUDA, 5.2): only named arrays are fetched.
 *   <li>Kernels that fail to compile are run as plain Java (5.2 and 6.0, #1067; by default no more since #1107): {@link
 *       TornadoHome#bailoutsAreErrors}.
 *   <li>Kernels are looked at for the backend of the highest priority, OpenCL unless told otherwise, which has neither
 *       dp4a nor tensor cores (5.2 to 7): the launcher and docs/java.md set {@code tornado.cuda.priority} and {@code
 *       tornado.ptx.priority}.
 *   <li>{@code simdShuffleDown} compiles on OpenCL and computes wrong numbers (7): no kernel shuffles, which the build
 *       checks.
 *   <li>int8 fragments are loaded at an offset through FP16's loads (5.2), or by their own (7.0, #1101), and
 *       accumulators are read in a kernel (7.0, #1094): tensor cores are used from CUDA C alone, in which there is no
 *       difference.
 * </ul>
 *
 * @param version as TornadoVM writes it, {@code 8.2.0-jdk22plus}; null without its SDK
 */
public record Quirks(@Nullable String version) {
    /** The version that layers have run on. */
    static final String TRIED = "5.2.0";

    /** Those of this JVM. */
    public static final Quirks HERE = new Quirks(find());

    /** Nodes of a graph of TornadoVM's (5.2), however it is started: each task, and each array that one writes. */
    static final int GRAPH_NODES = 1024;

    /** Bytes of a graph's own code (5.2), however TornadoVM is started. */
    public static final int GRAPH_CODE_BYTES = 8 * 1024;

    private static final Pattern NUMBERS = Pattern.compile("(\\d+)(?:\\.(\\d+))?.*");

    /** Which version's descriptor, or else which version's jar, the API comes from. */
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

    /** {@code 8.2.0-jdk22plus} of {@code file:/.../tornado-api-8.2.0-jdk22plus.jar}; null where the name has none. */
    static @Nullable String ofJar(URI jar) {
        Matcher name = Pattern.compile(".*/tornado-api-(\\d.*)\\.jar").matcher(jar.toString());
        return name.matches() ? name.group(1) : null;
    }

    /** Whether it is of that version or a later one. What has no version counts as the oldest that is known. */
    boolean isAtLeast(int major, int minor) {
        Matcher numbers = NUMBERS.matcher(version == null ? TRIED : version);
        if (!numbers.matches()) {
            return false;
        }
        int here = Integer.parseInt(numbers.group(1));
        int minorHere = numbers.group(2) == null ? 0 : Integer.parseInt(numbers.group(2));
        return here > major || (here == major && minorHere >= minor);
    }

    /** Whether no layer has run on any version so new. */
    boolean isUntried() {
        return isAtLeast(5, 3);
    }

    /**
     * Bytes from where CUDA's memory of an array begins to its first value: the header, up to 6.0. From 6.1 on (#1066)
     * the values begin at a multiple of 32, and the header, of which the constant is what it was, right in front of
     * them.
     */
    public int payload() {
        int header = Math.toIntExact(TornadoNativeArray.ARRAY_HEADER);
        return isAtLeast(6, 1) ? Math.ceilDiv(header, 32) * 32 : header;
    }

    /**
     * Whether each of a graph's prebuilt tasks is taken for the graph's first task, and runs the code of that one:
     * until 6.0, where such a task wasn't equal to itself (#1049).
     */
    public boolean takesPrebuiltTasksForTheFirst() {
        return !isAtLeast(6, 0);
    }

    /**
     * Whether pages of an array may stay pinned when the array is gone: PTX's do (5.2; later versions have no PTX,
     * #872). A later array that comes to lie there is then transferred from and to pages that are no longer its own,
     * or, where it is longer than what is pinned, not at all; either way silently.
     */
    boolean leavesArraysPinned(String backend) {
        return backend.equals(Device.PTX);
    }

    /**
     * Whether buffers that tasks only write are filled with zeros when they are allocated, right before their first
     * task, on CUDA's default stream and without waiting, though nothing orders a plan's own stream behind that one:
     * the zeros can come after a kernel's values, and do where several processes share a GPU (CUDA, 5.2; of later
     * versions nothing is known).
     */
    public boolean zeroesOnAnotherStream(String backend) {
        return backend.equals(Device.CUDA);
    }

    /** Whether what a backend calls the size of a work-group is the grid's: PTX's (5.2). */
    static boolean reportsGridAsGroup(String backend) {
        return backend.equals(Device.PTX);
    }

    /** The name that PTX (5.2) looks for in a prebuilt task's source: task and arguments' types are part of it. */
    public static String ptxName(String graph, String task, String entryPoint, List<Object> arguments) {
        StringBuilder name = new StringBuilder(graph + "_" + task + "_" + entryPoint);
        arguments.forEach(
                array -> name.append("_arrays_").append(array.getClass().getSimpleName()));
        return name.toString().toLowerCase(Locale.ROOT);
    }

    /**
     * A plan that is closed marks its whole device as reset (5.2 and 6), which then refuses every other plan that was
     * compiled beforehand: the mark is taken back. Later the mark is a plan's, and the method that takes it back has
     * gone with it.
     */
    static void takeResetBack(TornadoDeviceContext context) {
        call(TornadoDeviceContext.class, "setResetToFalse", context);
    }

    /**
     * Closes a plan on the thread that ran it, while no other runs on the device. To destroy the CUDA graph that a plan
     * replays, its device takes the queue of whichever plan it comes upon first (CUDA, from 5.2 on); where that isn't
     * this one, the other plan gets a queue for this thread, too, which nothing gives back: memory of the host and of
     * the GPU with every plan that is closed. So the device knows of this plan alone meanwhile.
     */
    static void close(TornadoExecutionPlan plan, TornadoDeviceContext context) throws TornadoExecutionPlanException {
        Set<Long> known = context.getRegisteredPlanIds();
        List<Long> others = known.stream().filter(id -> id != plan.getId()).toList();
        try {
            others.forEach(known::remove);
            plan.close();
        } finally {
            others.forEach(known::add);
        }
    }

    /**
     * Makes a device's CUDA context the calling thread's, where a context is a device's own (from 7 on, whose NCCL
     * needs it).
     *
     * @return false where TornadoVM can't, since its GPUs share one: see {@link CudaContexts}
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
     * Calls a method that not every version has; false where this one has none. It has to be public, in a package that
     * is exported.
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
