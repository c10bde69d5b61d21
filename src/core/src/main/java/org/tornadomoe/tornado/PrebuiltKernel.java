package org.tornadomoe.tornado;

import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import uk.ac.manchester.tornado.api.AccessorParameters;
import uk.ac.manchester.tornado.api.TaskGraph;
import uk.ac.manchester.tornado.api.common.Access;
import uk.ac.manchester.tornado.api.types.arrays.TornadoNativeArray;

/**
 * A kernel in the device's own language, for instructions that TornadoVM's compilers have no words for. Its source is a
 * resource beside the Java kernels, once in CUDA C for the CUDA backend and once in PTX, compiled from that, for the PTX one.
 *
 * @param source the resource's name without its ending
 * @param entryPoint the kernel's name in it
 */
record PrebuiltKernel(String source, String entryPoint) {
    /** Why a device doesn't run such kernels with int8 tensor cores; null if it does. */
    static @Nullable String obstacle(Device device) {
        if (!device.is(Device.CUDA) && !device.is(Device.PTX)) {
            return "there are kernels for CUDA and PTX only";
        }
        if (TornadoNativeArray.ARRAY_HEADER != 16) {
            return "arrays have a header of " + TornadoNativeArray.ARRAY_HEADER + " bytes and the kernels read at 16"
                    + " (-XX:-UseCompressedClassPointers and the like)";
        }
        return device.lacksInt8Mma();
    }

    /** Adds it to a graph. Its parameters are the arrays that it reads, and last the one that it writes. */
    void addTask(TaskGraph graph, Device device, String task, List<Object> reads, Object writes) {
        List<Object> arguments =
                Stream.concat(reads.stream(), Stream.of(writes)).toList();
        AccessorParameters parameters = new AccessorParameters(arguments.size());
        for (int i = 0; i < arguments.size(); i++) {
            parameters.set(i, arguments.get(i), i < reads.size() ? Access.READ_ONLY : Access.WRITE_ONLY);
        }
        boolean ptx = device.is(Device.PTX);
        String name = ptx ? Quirks.ptxName(graph.getTaskGraphName(), task, entryPoint, arguments) : entryPoint;
        String text = ptx
                ? text(".ptx").replace(" " + entryPoint + "(", " " + name + "(")
                : "#define TORNADO_CUDA\n" + text(".cu");
        graph.prebuiltTask(task, entryPoint, write(text, ptx ? ".ptx" : ".cu").toString(), parameters);
    }

    private String text(String ending) {
        try (InputStream in = PrebuiltKernel.class.getResourceAsStream("kernels/" + source + ending)) {
            if (in == null) {
                throw new IllegalStateException("the library lacks its resource kernels/" + source + ending);
            }
            return new String(in.readAllBytes(), StandardCharsets.UTF_8);
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        }
    }

    /** TornadoVM reads it from a file when the plan is compiled. */
    private Path write(String text, String ending) {
        try {
            Path file = Files.createTempFile(source, ending);
            file.toFile().deleteOnExit();
            return Files.writeString(file, text);
        } catch (IOException e) {
            throw new UncheckedIOException("a file for the kernel " + entryPoint, e);
        }
    }
}
