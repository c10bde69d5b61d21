package org.tornadomoe.checkpoint.weights;

import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;
import org.tornadomoe.checkpoint.file.CheckpointException;
import org.tornadomoe.checkpoint.file.DType;
import org.tornadomoe.checkpoint.file.Safetensors;
import org.tornadomoe.checkpoint.file.Tensor;

/**
 * A checkpoint's tensors while a layer is found, and which of them it took: one under the layer's block that nothing
 * takes would have changed the layer's numbers. Not thread-safe.
 */
public final class BlockTensors {
    private static final int NAMED_IN_MESSAGE = 4;

    /** What the last part of a name may be that nothing takes, and why. */
    private static final Map<String, String> UNREAD = new LinkedHashMap<>();

    static {
        UNREAD.put("tokens_per_expert", "training counts tokens in it, to balance experts");
        UNREAD.put("local_tokens_per_expert", "likewise");
        UNREAD.put("num_tokens_per_expert", "likewise");
        UNREAD.put("bias_vl", "the correction bias of tokens of pictures");
    }

    private final Safetensors tensors;
    private final Set<String> taken = new LinkedHashSet<>();

    public BlockTensors(Safetensors tensors) {
        this.tensors = tensors;
    }

    /** What was opened, for messages. */
    public Path path() {
        return tensors.path();
    }

    /** The names of all tensors. */
    public Set<String> names() {
        return tensors.names();
    }

    /** Whether there is a tensor of that name; it isn't taken. */
    public boolean has(String name) {
        return tensors.find(name) != null;
    }

    /** Whether there is a tensor of that name and it has any values; it isn't taken. */
    public boolean hasValues(String name) {
        Tensor tensor = tensors.find(name);
        return tensor != null && tensor.elements() > 0;
    }

    /** Whether there is a tensor of that name and it has floats; it isn't taken. */
    public boolean hasFloats(String name) {
        Tensor tensor = tensors.find(name);
        return tensor != null && tensor.dtype().isFloat();
    }

    /** The dtype of the tensor of that name, which isn't taken; null if there is none. */
    public @Nullable DType dtype(String name) {
        Tensor tensor = tensors.find(name);
        return tensor == null ? null : tensor.dtype();
    }

    /** The shape of the tensor of that name, which isn't taken. */
    public long[] shape(String name) {
        return tensors.tensor(name).shape();
    }

    /** Takes the tensor of that name, null if there is none. */
    public @Nullable Tensor find(String name) {
        taken.add(name);
        return tensors.find(name);
    }

    /**
     * Takes the tensor of that name.
     *
     * @throws CheckpointException if there is none
     */
    public Tensor tensor(String name) {
        taken.add(name);
        return tensors.tensor(name);
    }

    /** How many names were taken until now, whether or not there is such a tensor. */
    public int mark() {
        return taken.size();
    }

    /** The tensors that were first taken after so many names. */
    public List<Tensor> takenSince(int count) {
        return taken.stream()
                .skip(count)
                .map(tensors::find)
                .flatMap(Stream::ofNullable)
                .toList();
    }

    /**
     * Checks that all tensors whose names begin so were taken, or change nothing.
     *
     * @throws CheckpointException that names those that weren't
     */
    public void requireAllTaken(String block) {
        List<Tensor> left = names().stream()
                .filter(name -> name.startsWith(block)
                        && !taken.contains(name)
                        && !UNREAD.containsKey(name.substring(name.lastIndexOf('.') + 1)))
                .map(tensors::tensor)
                .filter(tensor -> tensor.elements() > 0)
                .toList();
        if (!left.isEmpty()) {
            int more = left.size() - NAMED_IN_MESSAGE;
            throw new CheckpointException(
                    left.getFirst().file(),
                    "nothing reads "
                            + String.join(
                                    ", ",
                                    left.stream()
                                            .limit(NAMED_IN_MESSAGE)
                                            .map(tensor -> "tensor '" + tensor.name() + "'")
                                            .toList())
                            + (more > 0 ? " and " + more + " more" : "")
                            + " of the MoE block " + block + "*: without what " + (left.size() == 1 ? "it" : "they")
                            + " may mean the layer's numbers would be wrong");
        }
    }
}
