package org.tornadomoe.tornado.graph;

import java.util.List;
import java.util.function.BiFunction;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.kernel.Support;
import org.tornadomoe.tornado.device.Device;

/** One whose layer is the program of kernels in Java. */
abstract class JavaGemm implements ExpertGemm {
    @Override
    public LayerProgram program(LayerArrays arrays) {
        return new LayerProgram(this, arrays);
    }

    /**
     * Of each part two kernels, of which one has nothing to do in a call; only the first if no call needs the other.
     *
     * @param few pairs of a block of the first kernel
     * @param many pairs of a block of the second
     * @param stage makes the kernel's, from a part and the pairs of a block
     */
    static List<Stage> ofEitherSize(LayerArrays a, int few, int many, BiFunction<Integer, Integer, Stage> stage) {
        // By rule blocks only grow; whoever chooses them may choose any.
        int largest = a.launches.source() == null ? a.blockSize(a.shape.maxTokens) : many;
        return a
                .shape
                .parts
                .each(part -> Stream.of(few, many)
                        .filter(size -> size <= largest)
                        .map(size -> stage.apply(part, size))
                        .toList())
                .stream()
                .flatMap(List::stream)
                .toList();
    }

    /**
     * @param kind of numbers
     * @param lacking what the device lacks of such tensor cores; null for nothing
     */
    static @Nullable Support withoutTensorCores(Device device, String kind, @Nullable String lacking) {
        return lacking == null
                ? null
                : Support.no(
                        device + " has no usable " + kind + " tensor cores: " + lacking,
                        "device: one with " + kind + " tensor cores, through CUDA or PTX");
    }
}
