package org.tornadomoe.tornado;

import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import org.tornadomoe.config.Int8Scheme;
import org.tornadomoe.tornado.HostCopies.Piece;
import org.tornadomoe.tornado.graph.LayerArrays;

/**
 * The partition of a {@link CudaCall}'s tokens: into chunks, one after the other, and of each chunk into one share per
 * GPU.
 */
final class CallShares {
    /** The maximum number of chunks. */
    static final int CHUNKS = 3;

    /** Up to this many bytes of hidden states nothing overlaps, and each of several GPUs reads all of them. */
    private static final long FEW = 1 << 20;

    /** The minimum number of tokens of a call in chunks; a chunk's tokens are a multiple of the next constant. */
    private static final int MANY_TOKENS = 1024;

    private static final int CHUNK_TOKENS = 128;

    /** About how many times faster a GPU reads its own memory than the host's. */
    private static final long MEMORY_BY_LINK = 64;

    private CallShares() {}

    /**
     * A call's memory; whether GPUs copy from and to the caller's memory themselves, and whether there are few tokens.
     */
    record Memory(
            MemorySegment hidden, boolean isHiddenPinned, MemorySegment output, boolean isOutputPinned, boolean few) {
        static boolean isFew(long bytes) {
            return bytes <= FEW;
        }
    }

    /** Tokens that the kernels compute together, {@code from} inclusive, {@code to} exclusive. */
    record Chunk(int number, int from, int to) {
        int tokens() {
            return to - from;
        }
    }

    /**
     * The tokens of a chunk that a GPU reads and writes, in pieces.
     *
     * @param rank the GPU's number
     */
    record Share(int rank, Chunk chunk, int from, int to, List<Piece> in, List<Piece> out) {
        boolean isNone() {
            return from == to;
        }
    }

    /**
     * The shares of each chunk, in the order of the GPUs. Each has an even number of tokens, so that two shares never
     * have an int in common.
     *
     * @param gpus the arrays of each GPU's part
     * @param row bytes of a token's hidden states, and of its output
     */
    static List<List<Share>> of(
            List<LayerArrays> gpus, Memory memory, int tokens, long row, HostCopies in, HostCopies out) {
        long piece = HostCopies.pieceOf(tokens * row);
        List<List<Share>> chunks = new ArrayList<>();
        for (Chunk chunk : memory.few ? List.of(new Chunk(0, 0, tokens)) : chunks(gpus, tokens, row)) {
            List<Share> shares = new ArrayList<>();
            int pairs = Math.ceilDiv(chunk.tokens(), 2);
            int from = chunk.from;
            for (int rank = 0; rank < gpus.size(); rank++) {
                int to = memory.few ? chunk.to : Math.min(chunk.to, chunk.from + pairs * (rank + 1) / gpus.size() * 2);
                long begin = from * row;
                long end = to * row;
                MemorySegment incoming = gpus.get(rank).work.incoming().getSegment();
                MemorySegment outgoing = gpus.get(rank).work.outgoing().getSegment();
                shares.add(new Share(
                        rank,
                        chunk,
                        from,
                        to,
                        memory.isHiddenPinned
                                ? in.pieces(memory.hidden, memory.hidden, begin, end, end - begin)
                                : in.pieces(memory.hidden, incoming, begin, end, piece),
                        memory.isOutputPinned
                                ? out.pieces(memory.output, memory.output, begin, end, end - begin)
                                : out.pieces(outgoing, memory.output, begin, end, piece)));
                from = to;
            }
            chunks.add(shares);
        }
        return chunks;
    }

    private static List<Chunk> chunks(List<LayerArrays> gpus, int tokens, long row) {
        LayerArrays first = gpus.getFirst();
        int edge = tokens / 4 / CHUNK_TOKENS * CHUNK_TOKENS;
        boolean whole = tokens < MANY_TOKENS
                // a token's position in the call determines which copy of an expert it uses
                || first.shape.balanced
                // one scale for all tokens of the call
                || (first.shape.scheme == Int8Scheme.W8A8_TENSOR && !first.staticScales)
                || gpus.stream()
                        .anyMatch(arrays -> !arrays.isLaunchedAlike(edge, tokens)
                                || !arrays.isLaunchedAlike(tokens - 2 * edge, tokens));
        // Each further chunk reads the weights once more; meanwhile three quarters of the copies are done.
        long more = (CHUNKS - 1) * first.expertBytes();
        long less = tokens * row * 3 / 2 / gpus.size() * MEMORY_BY_LINK;
        return whole || more > less
                ? List.of(new Chunk(0, 0, tokens))
                : List.of(
                        new Chunk(0, 0, edge), new Chunk(1, edge, tokens - edge), new Chunk(2, tokens - edge, tokens));
    }
}
