package org.tornadomoe.bench;

import java.util.List;

/**
 * On paper: what it costs to bring tokens to the executors that own their experts and the results back, a token, beside
 * what computing it took where it was measured. Prints a Markdown table.
 *
 * <p>N executors own E / N experts each, those beyond E in groups of E executors that exchange among themselves; each
 * has M tokens, which go to K experts chosen evenly. A token is sent once to each other owner that has experts of it,
 * in int8 with its scale or in float32, with ids and weights; each sends back one sum, in BF16, or in float32 on Spark,
 * where the token's row crosses to its sums, too. Both exchanges wait for the slower of bytes and messages, one to each
 * other executor; nothing overlaps with computing.
 */
public final class ExchangeCost {
    private record Model(String name, int experts, int topK, int hidden, int tokens, double microseconds) {}

    /**
     * A network: bytes a second of an executor in each direction, and what a message costs it.
     *
     * @param perExchange what every exchange costs besides, in seconds
     * @param there bytes of a value of a hidden state: 1 with a scale a token, or 4
     * @param back bytes of a value of a sum
     * @param row bytes of a value in the token's own row, 0 if that stays where it is
     */
    private record Network(
            String name, double bytesPerSecond, double perMessage, double perExchange, int there, int back, int row) {}

    /**
     * All kernels of the layer on one H100, from bench/results (2026-11-23), with the tokens that they were measured
     * for.
     */
    private static final List<Model> MODELS = List.of(
            new Model("Qwen3-30B-A3B", 128, 8, 2048, 256, 494),
            new Model("Qwen3-30B-A3B", 128, 8, 2048, 4096, 2630),
            new Model("Mixtral-8x7B", 8, 2, 4096, 256, 886),
            new Model("Mixtral-8x7B", 8, 2, 4096, 4096, 8079));

    /**
     * Stated, not measured: line rate less a tenth, 400 Gb/s a GPU for RDMA, 100 Gb/s a machine of 8 GPUs for TCP,
     * which Spark's shuffle takes, too; a message's time on the sender's side.
     */
    private static final List<Network> NETWORKS = List.of(
            new Network("RDMA: int8 + scale there, BF16 back", 45e9, 1e-6, 5e-6, 1, 2, 0),
            new Network("TCP: int8 + scale there, BF16 back", 1.4e9, 10e-6, 50e-6, 1, 2, 0),
            new Network("Spark's shuffle: int8 + scale there, float32 back", 1.4e9, 50e-6, 50e-3, 1, 4, 4),
            new Network("Spark's shuffle: float32 there and back", 1.4e9, 50e-6, 50e-3, 4, 4, 4));

    private ExchangeCost() {}

    public static void main(String[] args) {
        System.out.println(
                "| model, tokens an executor | network | computing, µs a token | exchanges at N = 8 | 64 | 128 |"
                        + " 1024 |");
        System.out.println("| --- | --- | --- | --- | --- | --- | --- |");
        for (Model model : MODELS) {
            for (Network network : NETWORKS) {
                StringBuilder row = new StringBuilder("| %s, %d | %s | %.2f"
                        .formatted(model.name, model.tokens, network.name, model.microseconds / model.tokens));
                for (int executors : new int[] {8, 64, 128, 1024}) {
                    row.append(" | %.2f".formatted(1e6 * exchanges(model, network, executors) / model.tokens));
                }
                System.out.println(row.append(" |"));
            }
        }
    }

    /** Seconds that an executor spends in both exchanges of a call. */
    private static double exchanges(Model model, Network network, int executors) {
        int owners = Math.min(executors, model.experts);
        // Owners of a token's experts: those that not all of its K distinct experts miss.
        double missed = 1;
        int each = model.experts / owners;
        for (int k = 0; k < model.topK; k++) {
            missed *= (double) (model.experts - each - k) / (model.experts - k);
        }
        double remote = (owners - 1) * (1 - missed);
        double there = remote * (network.there * model.hidden + (network.there == 1 ? 4 : 0) + 8.0 * model.topK);
        double back = remote * network.back * model.hidden + network.row * model.hidden;
        double messages = (owners - 1) * network.perMessage;
        double seconds = 0;
        for (double bytes : new double[] {there, back}) {
            seconds += network.perExchange + Math.max(model.tokens * bytes / network.bytesPerSecond, messages);
        }
        return seconds;
    }
}
