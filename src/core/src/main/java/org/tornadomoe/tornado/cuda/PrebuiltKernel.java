package org.tornadomoe.tornado.cuda;

import java.util.List;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.tornado.device.Device;
import org.tornadomoe.tornado.device.Quirks;
import org.tornadomoe.tornado.kernels.KernelSource;
import uk.ac.manchester.tornado.api.AccessorParameters;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.common.Access;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * A kernel in the device's own language, for instructions that TornadoVM's compilers can't express. Its source is a
 * resource beside the Java kernels: CUDA C for the CUDA backend, PTX compiled from it for the PTX backend, OpenCL C for
 * OpenCL.
 *
 * @param source the resource's name without its extension
 * @param entryPoint the kernel's name in it
 * @param head lines to put before a C source
 */
public record PrebuiltKernel(String source, String entryPoint, String head) {
    /** Why a device can't run such kernels with int8 tensor cores; null if it can. */
    public static @Nullable String obstacle(Device device) {
        if (!device.is(Device.CUDA) && !device.is(Device.PTX)) {
            return "there are kernels for CUDA and PTX only";
        }
        if (TornadoNativeArray.ARRAY_HEADER != 16) {
            return "arrays have a header of " + TornadoNativeArray.ARRAY_HEADER + " bytes and the kernels read at 16"
                    + " (-XX:-UseCompressedClassPointers and the like)";
        }
        return device.lacksInt8Mma();
    }

    /** Adds it to a graph. Its parameters are the arrays that it reads and, last, the array that it writes. */
    public void addTask(TaskGraph graph, Device device, String task, List<Object> reads, Object writes) {
        List<Object> arguments =
                Stream.concat(reads.stream(), Stream.of(writes)).toList();
        AccessorParameters parameters = new AccessorParameters(arguments.size());
        for (int i = 0; i < arguments.size(); i++) {
            parameters.set(i, arguments.get(i), i < reads.size() ? Access.READ_ONLY : Access.WRITE_ONLY);
        }
        boolean ptx = device.is(Device.PTX);
        String name = ptx ? Quirks.ptxName(graph.getTaskGraphName(), task, entryPoint, arguments) : entryPoint;
        String ending = ptx ? ".ptx" : device.is(Device.OPENCL) ? ".cl" : ".cu";
        String text = KernelSource.text(source + ending);
        graph.prebuiltTask(
                task,
                entryPoint,
                KernelSource.file(
                                ptx ? text.replace(" " + entryPoint + "(", " " + name + "(") : head + text,
                                source,
                                ending)
                        .toString(),
                parameters);
    }
}
