package org.tornadomoe.config;

import java.util.List;

/**
 * How a layer is spread over ranks (vLLM: {@code FusedMoEParallelConfig}). {@link #builder} derives tensor and expert
 * parallelism from the deployment's sizes; the record holds the result.
 *
 * @param tpSize number of ranks that share each expert's intermediate size
 * @param pcpSize number of ranks of prefill context parallelism
 * @param dpSize number of ranks with their own tokens
 * @param epSize number of ranks that share the experts
 * @param spSize number of ranks of sequence parallelism
 * @param useEp whether the ranks share the experts
 * @param all2allBackend the mechanism that moves tokens between ranks, one of {@link #ALL2ALL_BACKENDS}
 * @param enableEplb whether experts move between ranks by load
 */
public record FusedMoeParallelConfig(
        int tpSize,
        int pcpSize,
        int dpSize,
        int epSize,
        int tpRank,
        int pcpRank,
        int dpRank,
        int epRank,
        int spSize,
        boolean useEp,
        String all2allBackend,
        boolean enableEplb) {

    /** The valid names for {@code all2allBackend}. */
    public static final List<String> ALL2ALL_BACKENDS = List.of(
            "allgather_reducescatter",
            "deepep_high_throughput",
            "deepep_low_latency",
            "deepep_v2",
            "nixl_ep",
            "mori_high_throughput",
            "mori_low_latency",
            "flashinfer_all2allv",
            "flashinfer_nvlink_two_sided",
            "flashinfer_nvlink_one_sided");

    /** One rank. */
    public static final FusedMoeParallelConfig NO_PARALLEL = builder().build();

    /**
     * Checks every field.
     *
     * @throws IllegalArgumentException naming the field, what was expected and what came
     */
    public FusedMoeParallelConfig {
        requireRank("tp", tpSize, tpRank);
        requireRank("pcp", pcpSize, pcpRank);
        requireRank("dp", dpSize, dpRank);
        requireRank("ep", epSize, epRank);
        requireRank("sp", spSize, 0);
        if (!useEp && epSize > 1) {
            throw new IllegalArgumentException("epSize: expected 1 without expert parallelism, got " + epSize);
        }
        if (!ALL2ALL_BACKENDS.contains(all2allBackend)) {
            throw new IllegalArgumentException(
                    "all2allBackend: expected one of " + ALL2ALL_BACKENDS + ", got '" + all2allBackend + "'");
        }
    }

    private static void requireRank(String name, int size, int rank) {
        if (size < 1) {
            throw new IllegalArgumentException(name + "Size: expected a positive number, got " + size);
        }
        if (rank < 0 || rank >= size) {
            throw new IllegalArgumentException(name + "Rank: expected 0 to " + (size - 1) + ", got " + rank);
        }
    }

    public boolean isSequenceParallel() {
        return spSize > 1;
    }

    /** Whether tokens travel to the ranks of their experts. */
    public boolean useAll2allKernels() {
        return useEp && (dpSize > 1 || pcpSize > 1 || isSequenceParallel());
    }

    public boolean useDeepepLlKernels() {
        return uses("deepep_low_latency");
    }

    public boolean useNixlEpKernels() {
        return uses("nixl_ep");
    }

    public boolean useFiNvlTwoSidedKernels() {
        return uses("flashinfer_all2allv") || uses("flashinfer_nvlink_two_sided");
    }

    public boolean useFiNvlOneSidedKernels() {
        return uses("flashinfer_nvlink_one_sided");
    }

    /** Whether activations come as [E, maximum tokens per expert, H]. */
    public boolean useBatchedActivationFormat() {
        return useDeepepLlKernels() || useNixlEpKernels();
    }

    private boolean uses(String backend) {
        return useAll2allKernels() && all2allBackend.equals(backend);
    }

    /** The same deployment with another all-to-all. */
    public FusedMoeParallelConfig withAll2allBackend(String backend) {
        return new FusedMoeParallelConfig(
                tpSize, pcpSize, dpSize, epSize, tpRank, pcpRank, dpRank, epRank, spSize, useEp, backend, enableEplb);
    }

    /** As Python prints vLLM's dataclass, which vLLM's messages contain. */
    @Override
    public String toString() {
        return "FusedMoEParallelConfig(tp_size=" + tpSize + ", pcp_size=" + pcpSize + ", dp_size=" + dpSize
                + ", ep_size="
                + epSize + ", tp_rank=" + tpRank + ", pcp_rank=" + pcpRank + ", dp_rank=" + dpRank + ", ep_rank="
                + epRank
                + ", sp_size=" + spSize + ", use_ep=" + (useEp ? "True" : "False") + ", all2all_backend='"
                + all2allBackend
                + "', enable_eplb=" + (enableEplb ? "True" : "False") + ")";
    }

    /** A builder with the defaults of one rank of everything and {@code allgather_reducescatter}. */
    public static Builder builder() {
        return new Builder();
    }

    /** The deployment's sizes; {@link #build} derives how a layer is spread. */
    public static final class Builder {
        private int tpSize = 1;
        private int tpRank;
        private int pcpSize = 1;
        private int pcpRank;
        private int dpSize = 1;
        private int dpRank;
        private int spSize = 1;
        private boolean expertParallel;
        private boolean eplb;
        private String all2allBackend = "allgather_reducescatter";

        private Builder() {}

        /** Tensor parallelism of the deployment. */
        public Builder tp(int size, int rank) {
            tpSize = size;
            tpRank = rank;
            return this;
        }

        /** Prefill context parallelism. */
        public Builder pcp(int size, int rank) {
            pcpSize = size;
            pcpRank = rank;
            return this;
        }

        /** Data parallelism. */
        public Builder dp(int size, int rank) {
            dpSize = size;
            dpRank = rank;
            return this;
        }

        /** Sequence parallelism. */
        public Builder sp(int size) {
            spSize = size;
            return this;
        }

        /** Whether all ranks share the experts, rather than each expert's intermediate size. */
        public Builder expertParallel(boolean value) {
            expertParallel = value;
            return this;
        }

        public Builder eplb(boolean value) {
            eplb = value;
            return this;
        }

        public Builder all2allBackend(String value) {
            all2allBackend = value;
            return this;
        }

        /**
         * Builds the configuration. All {@code dp * pcp * tp} ranks share the layer: with expert parallelism they share
         * the experts, without it each expert's intermediate size.
         *
         * @throws IllegalArgumentException as {@link FusedMoeParallelConfig#FusedMoeParallelConfig}
         */
        public FusedMoeParallelConfig build() {
            requireRank("tp", tpSize, tpRank);
            requireRank("pcp", pcpSize, pcpRank);
            requireRank("dp", dpSize, dpRank);
            double all = (double) dpSize * pcpSize * tpSize;
            if (all > Integer.MAX_VALUE) {
                throw new IllegalArgumentException("dpSize * pcpSize * tpSize: expected fewer than 2^31 ranks, got "
                        + dpSize + " * " + pcpSize + " * " + tpSize);
            }
            int size = dpSize * pcpSize * tpSize;
            int rank = (dpRank * pcpSize + pcpRank) * tpSize + tpRank;
            boolean useEp = expertParallel && size > 1;
            return new FusedMoeParallelConfig(
                    useEp ? 1 : size,
                    pcpSize,
                    dpSize,
                    useEp ? size : 1,
                    useEp ? 0 : rank,
                    pcpRank,
                    dpRank,
                    useEp ? rank : 0,
                    spSize,
                    useEp,
                    all2allBackend,
                    eplb);
        }
    }
}
