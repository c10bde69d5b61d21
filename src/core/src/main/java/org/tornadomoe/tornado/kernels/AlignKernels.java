package org.tornadomoe.tornado.kernels;

import org.tornadomoe.kernel.Replicas;
import uk.ac.manchester.tornado.api.KernelContext;
import uk.ac.manchester.tornado.api.types.arrays.IntArray;

/**
 * Alignment: the pairs sorted by expert, each expert's run padded to whole blocks, so that a block of a GEMM has one
 * expert. The same result as vLLM's {@code moe_align_block_size}, and always stable: an expert's pairs keep their
 * order.
 *
 * <p>With expert parallelism, {@code expertMap} gives the local number of an expert, or −1 if it lives elsewhere, and
 * there are vLLM's two ways with pairs of such experts. With {@code keep} 0 they are left out, as are ids that are no
 * expert's: pairs are sorted by local number. With {@code keep} 1 they are sorted in by global number, and their blocks
 * have expert −1, for which a GEMM writes zeros. What a pair is sorted by is its key; a pair that is left out has key
 * −1.
 *
 * <p>In vLLM's batched format, [E, slots, H], an expert has a slot for each of the M tokens, whatever the others have:
 * the places are [E, S] with S = M in whole blocks, slot s of expert e at e·S + s. The pair there is read from the
 * token's own row, so that nothing is copied; what is no pair is padding, and blocks without a pair have expert −1.
 *
 * <p>Three kernels, because groups can't wait for one another: every chunk of {@link #CHUNK} pairs counts its own, one
 * group adds the counts up, every pair goes to its place. For few pairs there is {@link #assignBlocks} instead.
 */
public final class AlignKernels {
    /** Pairs that one group of {@link #count} counts; also its work-items. */
    public static final int CHUNK = 256;

    /** Work-items of the one group of {@link #offsets}; each has {@link #MAX_EXPERTS} / {@code SCAN_GROUP} experts. */
    public static final int SCAN_GROUP = 256;

    /** Work-items of a group of {@link #scatter}, {@link #place} and {@link #loads}. */
    public static final int SCATTER_GROUP = 128;

    /** The most experts: the size of the local arrays. */
    public static final int MAX_EXPERTS = 1024;

    private static final int EXPERTS_AN_ITEM = MAX_EXPERTS / SCAN_GROUP;

    private AlignKernels() {}

    /**
     * Which pairs are this device's, where experts are on several: the ids of the others become −1.
     *
     * <p>Grid: a work-item a pair, groups of {@link #SCATTER_GROUP}. Costs 20 bytes a pair, most of them from the
     * cache.
     *
     * @param header [0] = M
     * @param topkIds [P]; from {@code globalExperts} on zero experts
     * @param replicas [globalExperts + 1, 3] as {@link Replicas} has it
     * @param placedIds [P], written
     */
    public static void place(
            KernelContext ctx,
            IntArray header,
            IntArray topkIds,
            IntArray replicas,
            IntArray placedIds,
            int topK,
            int globalExperts) {
        int pair = ctx.globalIdx;
        if (pair < header.get(0) * topK) {
            int id = topkIds.get(pair);
            int placed = -1;
            if (id >= 0) {
                int row = (id < globalExperts ? id : globalExperts) * Replicas.ROW;
                int count = replicas.get(row);
                // In long, since C's compilers take it that an int doesn't overflow.
                long hash = pair / topK * (Replicas.HASH & 0xFFFF_FFFFL) & 0xFFFF_FFFFL;
                int replica = (int) (hash % count) - replicas.get(row + 1);
                if (replica >= 0 && replica < replicas.get(row + 2)) {
                    placed = id;
                }
            }
            placedIds.set(pair, placed);
        }
    }

    /**
     * The pairs of each expert.
     *
     * <p>Grid: a work-item an expert, groups of {@link #SCATTER_GROUP}. Costs 4·chunks·E bytes.
     *
     * @param header [0] = M
     * @param counts [chunks, E], of {@link #count}
     * @param loads [E], written
     */
    public static void loads(
            KernelContext ctx, IntArray header, IntArray counts, IntArray loads, int topK, int numExperts) {
        int expert = ctx.globalIdx;
        if (expert < numExperts) {
            int chunks = (header.get(0) * topK + CHUNK - 1) / CHUNK;
            int load = 0;
            for (int chunk = 0; chunk < chunks; chunk++) {
                load += counts.get(chunk * numExperts + expert);
            }
            loads.set(expert, load);
        }
    }

    /**
     * Counts the pairs of each expert in a chunk, and each pair's rank among the chunk's pairs of the same expert.
     *
     * <p>Grid: one group of {@link #CHUNK} work-items a chunk. Costs 256 local reads a pair, 4·E bytes written a chunk.
     *
     * @param header [0] = M
     * @param topkIds [P]; an id outside [0, globalExperts) is counted nowhere
     * @param expertMap [globalExperts]
     * @param keys [P], written
     * @param ranks [P], written
     * @param counts [chunks, E], written; E is the number of keys: local experts, or global ones with {@code keep} 1
     */
    public static void count(
            KernelContext ctx,
            IntArray header,
            IntArray topkIds,
            IntArray expertMap,
            IntArray keys,
            IntArray ranks,
            IntArray counts,
            int topK,
            int globalExperts,
            int numExperts,
            int keep) {
        int[] experts = ctx.allocateIntLocalArray(CHUNK);
        int[] histogram = ctx.allocateIntLocalArray(MAX_EXPERTS);
        int lane = ctx.localIdx;
        int chunk = ctx.groupIdx;
        int pair = chunk * CHUNK + lane;
        int pairs = header.get(0) * topK;
        int expert = -1;
        if (pair < pairs) {
            int id = topkIds.get(pair);
            if (id >= 0 && id < globalExperts) {
                expert = keep == 1 ? id : expertMap.get(id);
            }
            keys.set(pair, expert);
        }
        experts[lane] = expert;
        for (int e = lane; e < numExperts; e += CHUNK) {
            histogram[e] = 0;
        }
        ctx.localBarrier();
        int before = 0;
        int after = 0;
        for (int other = 0; other < CHUNK; other++) {
            if (experts[other] == expert) {
                before += other < lane ? 1 : 0;
                after += other > lane ? 1 : 0;
            }
        }
        if (expert >= 0) {
            ranks.set(pair, before);
            if (after == 0) {
                // The chunk's last pair of this expert knows how many there are; nobody else writes this element.
                histogram[expert] = before + 1;
            }
        }
        ctx.localBarrier();
        if (chunk * CHUNK < pairs) {
            for (int e = lane; e < numExperts; e += CHUNK) {
                counts.set(chunk * numExperts + e, histogram[e]);
            }
        }
    }

    /**
     * Where each expert's run starts, and where in it each chunk's pairs start; which expert each block has; the
     * padding.
     *
     * <p>Grid: one group of {@link #SCAN_GROUP} work-items, {@value #EXPERTS_AN_ITEM} experts each. Costs 8·chunks·E
     * bytes.
     *
     * @param header [0] = M, [1] = pairs of a block
     * @param counts [chunks, E], replaced by the place in {@code sortedIds} of the chunk's first pair of the expert
     * @param sortedIds the places that pad an expert's run to whole blocks get P, which is no pair
     * @param expertMap [globalExperts]
     * @param expertIds [blocks], written up to the last block in use: a local number, or −1
     * @param padded [0] written: places in use, a multiple of the block's
     * @param batched 1 for a slot of each expert for each token; an expert with more pairs has as many as it needs
     */
    public static void offsets(
            KernelContext ctx,
            IntArray header,
            IntArray expertMap,
            IntArray counts,
            IntArray sortedIds,
            IntArray expertIds,
            IntArray padded,
            int topK,
            int numExperts,
            int keep,
            int batched) {
        int[] runs = ctx.allocateIntLocalArray(MAX_EXPERTS);
        int[] places = ctx.allocateIntLocalArray(SCAN_GROUP);
        int lane = ctx.localIdx;
        int pairs = header.get(0) * topK;
        int blockSize = header.get(1);
        int chunks = (pairs + CHUNK - 1) / CHUNK;
        int slots = batched * ((header.get(0) + blockSize - 1) / blockSize * blockSize);

        int own = 0;
        for (int j = 0; j < EXPERTS_AN_ITEM; j++) {
            int expert = lane * EXPERTS_AN_ITEM + j;
            if (expert < numExperts) {
                int total = 0;
                for (int chunk = 0; chunk < chunks; chunk++) {
                    total += counts.get(chunk * numExperts + expert);
                }
                int run = (total + blockSize - 1) / blockSize * blockSize;
                runs[expert] = run > slots ? run : slots;
                own += runs[expert];
            }
        }

        // Inclusive scan of the padded totals over the work-items.
        places[lane] = own;
        ctx.localBarrier();
        for (int distance = 1; distance < SCAN_GROUP; distance <<= 1) {
            int left = lane >= distance ? places[lane - distance] : 0;
            ctx.localBarrier();
            places[lane] += left;
            ctx.localBarrier();
        }

        int start = places[lane] - own;
        for (int j = 0; j < EXPERTS_AN_ITEM; j++) {
            int expert = lane * EXPERTS_AN_ITEM + j;
            if (expert < numExperts) {
                int place = start;
                for (int chunk = 0; chunk < chunks; chunk++) {
                    int index = chunk * numExperts + expert;
                    int count = counts.get(index);
                    counts.set(index, place);
                    place += count;
                }
                int end = start + runs[expert];
                for (int pad = place; pad < end; pad++) {
                    sortedIds.set(pad, pairs);
                }
                for (int block = start / blockSize; block < end / blockSize; block++) {
                    int local = keep == 1 ? expertMap.get(expert) : expert;
                    expertIds.set(block, block * blockSize < place ? local : -1);
                }
                start = end;
            }
        }
        if (lane == SCAN_GROUP - 1) {
            padded.set(0, places[lane]);
        }
    }

    /**
     * Puts every pair in its place.
     *
     * <p>Grid: a work-item a pair, groups of {@link #SCATTER_GROUP}. Costs 16 bytes a pair.
     *
     * @param header [0] = M
     * @param keys [P], of {@link #count}
     * @param ranks [P], of {@link #count}
     * @param places [chunks, E], of {@link #offsets}
     * @param sortedIds written: for each place the pair that belongs there
     */
    public static void scatter(
            KernelContext ctx,
            IntArray header,
            IntArray keys,
            IntArray ranks,
            IntArray places,
            IntArray sortedIds,
            int topK,
            int numExperts) {
        int pair = ctx.globalIdx;
        if (pair < header.get(0) * topK) {
            int expert = keys.get(pair);
            if (expert >= 0) {
                sortedIds.set(places.get(pair / CHUNK * numExperts + expert) + ranks.get(pair), pair);
            }
        }
    }

    /**
     * A block for every pair, for so few that sorting them doesn't pay: the block's first place has the pair, the
     * others have P.
     *
     * <p>Grid: a work-item a place, groups of {@link #SCATTER_GROUP}. Costs 4 bytes a place, 12 a pair.
     *
     * @param header [0] = M, [1] = pairs of a block
     * @param topkIds [P]; an id outside [0, globalExperts) gives a block of nobody
     * @param expertMap [globalExperts]
     * @param keys [P], written: the local number of the pair's expert, −1 if there is none
     * @param sortedIds [P · pairs of a block], written
     * @param expertIds [P], written: the keys
     * @param padded [0] written: places in use
     */
    public static void assignBlocks(
            KernelContext ctx,
            IntArray header,
            IntArray topkIds,
            IntArray expertMap,
            IntArray keys,
            IntArray sortedIds,
            IntArray expertIds,
            IntArray padded,
            int topK,
            int globalExperts) {
        int place = ctx.globalIdx;
        int pairs = header.get(0) * topK;
        int blockSize = header.get(1);
        int block = place / blockSize;
        if (block < pairs) {
            int rest = place - block * blockSize;
            sortedIds.set(place, rest == 0 ? block : pairs);
            if (rest == 0) {
                int id = topkIds.get(block);
                int expert = -1;
                if (id >= 0 && id < globalExperts) {
                    expert = expertMap.get(id);
                }
                keys.set(block, expert);
                expertIds.set(block, expert);
            }
        }
        if (place == 0) {
            padded.set(0, pairs * blockSize);
        }
    }

    /**
     * Of aligned pairs those of some experts, where they are: for a GEMM that has these experts' weights only.
     *
     * <p>Grid: a work-item a place, groups of {@link #SCATTER_GROUP}. Costs 12 bytes a place.
     *
     * @param header [0] · {@code topK} = P, [1] = pairs of a block
     * @param sortedIds pairs in expert order
     * @param expertIds [blocks], local numbers or −1
     * @param padded [0] = places in use
     * @param partSortedIds written: {@code sortedIds}, P where the block's expert is no one of these; blocks of −1 are
     *     with expert 0
     * @param partExpertIds written: the block's expert as a number from {@code first}, −1 where it is no one of these
     * @param first of the experts, local
     * @param count how many there are
     */
    public static void part(
            KernelContext ctx,
            IntArray header,
            IntArray sortedIds,
            IntArray expertIds,
            IntArray padded,
            IntArray partSortedIds,
            IntArray partExpertIds,
            int topK,
            int first,
            int count) {
        int place = ctx.globalIdx;
        if (place < padded.get(0)) {
            int blockSize = header.get(1);
            int block = place / blockSize;
            int expert = expertIds.get(block);
            int own = expert - first;
            int here = own >= 0 && own < count ? 1 : 0;
            int nobodys = expert < 0 && first == 0 ? 1 : 0;
            partSortedIds.set(place, here + nobodys > 0 ? sortedIds.get(place) : header.get(0) * topK);
            if (place == block * blockSize) {
                partExpertIds.set(block, here == 1 ? own : -1);
            }
        }
    }
}
