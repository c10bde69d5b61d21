package org.tornadomoe.tornado;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.function.IntFunction;
import org.jspecify.annotations.Nullable;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.common.Access;
import uk.ac.manchester.tornado.api.common.LibraryTaskDescriptor;
import uk.ac.manchester.tornado.api.enums.TornadoVMBackendType;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * Kernels in CUDA C that a task graph launches as a library task, for instructions that neither TornadoVM's compilers nor its
 * prebuilt tasks have: {@link CudaLibrary} compiles them for exactly the device's architecture. On TornadoVM's CUDA backend.
 *
 * @param source the resource beside the Java kernels
 * @param options of the compiler
 * @param launch which of the source's kernels is launched for M tokens, and how; all have the same parameters
 */
record CudaKernel(String source, List<String> options, IntFunction<Launch> launch) {
    /**
     * @param entryPoint the kernel's name
     * @param group work-items of a group
     * @param gridX groups along x; {@link #ALL_MULTIPROCESSORS} for one a multiprocessor
     * @param gridY groups along y
     * @param sharedBytes dynamic shared memory
     */
    record Launch(String entryPoint, int group, int gridX, int gridY, int sharedBytes) {}

    static final int ALL_MULTIPROCESSORS = 0;

    private static final int HOPPER = 9;

    /** Why a device doesn't run kernels for Hopper; null if it does. */
    static @Nullable String hopperObstacle(Device device) {
        if (device.backend() != TornadoVMBackendType.CUDA) {
            return "there are kernels for CUDA only";
        }
        if (TornadoNativeArray.ARRAY_HEADER % 16 != 0) {
            return "arrays have a header of " + TornadoNativeArray.ARRAY_HEADER
                    + " bytes and the kernels read 16 at once" + " (-XX:-UseCompressedClassPointers and the like)";
        }
        try {
            int capability = CudaDriver.computeCapability(device.index());
            return capability == HOPPER ? null : "its compute capability is " + capability + ".x and they are for 9.x";
        } catch (RuntimeException | LinkageError failure) {
            return TornadoHome.cause(failure);
        }
    }

    /**
     * Adds it to a graph. The kernel's parameters are the header, the reads, the writes, the updates and the scalars.
     *
     * @param header whose first element is M when the task is launched
     * @param reads arrays
     * @param writes arrays whose content before doesn't count
     * @param updates arrays that are read and written
     * @param scalars ints and floats
     */
    void addTask(
            TaskGraph graph,
            String task,
            IntArray header,
            List<Object> reads,
            List<Object> writes,
            List<Object> updates,
            List<Object> scalars) {
        List<Object> parameters = new ArrayList<>(List.of(header));
        List<Access> access = new ArrayList<>(List.of(Access.READ_ONLY));
        add(reads, Access.READ_ONLY, parameters, access);
        add(writes, Access.WRITE_ONLY, parameters, access);
        add(updates, Access.READ_WRITE, parameters, access);
        add(scalars, Access.READ_ONLY, parameters, access);
        graph.libraryTask(
                task,
                descriptor -> descriptor,
                new LibraryTaskDescriptor()
                        .withLibrary(CudaLibrary.NAME)
                        .withFunction(task)
                        .withParameters(parameters.toArray())
                        .withAccess(access.toArray(Access[]::new))
                        .withTuning(this));
    }

    private static void add(List<Object> some, Access how, List<Object> parameters, List<Access> access) {
        parameters.addAll(some);
        access.addAll(Collections.nCopies(some.size(), how));
    }

    /** The text of the resource. */
    String text() {
        try (InputStream in = CudaKernel.class.getResourceAsStream("kernels/" + source)) {
            if (in == null) {
                throw new IllegalStateException("the library lacks its resource kernels/" + source);
            }
            return new String(in.readAllBytes(), StandardCharsets.UTF_8);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }
}
