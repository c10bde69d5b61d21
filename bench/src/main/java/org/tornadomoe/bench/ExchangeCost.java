package org.tornadomoe.bench;

import java.util.List;

/**
 * Computes, without measuring, the cost per token of bringing tokens to the executors that own their experts and the
 * results back, beside the measured time of computing them. Prints a Markdown table.
 *
 * <p>N executors own E / N experts each; beyond E executors, groups of E exchange among themselves. Each has M tokens,
 * which go to K evenly chosen experts. A token is sent once to each other owner of some of its experts, as int8 with
 * its scale or as float32, with ids and weights. Each owner sends back one sum, as BF16, or as float32 on Spark, where
 * the token's row crosses to its sums, too. Each exchange takes the longer of the time for bytes and the time for
 * messages, one to each other executor; nothing overlaps with computing.
 */
public final class ExchangeCost {
    private record Model(String name, int experts, int topK, int hidden, int tokens, double microseconds) {}

    /**
     * A network: an executor's bytes per second in each direction, and its cost per message.
     *
     * @param perExchange additional seconds per exchange
     * @param there bytes per value of a hidden state: 1 with one scale per token, or 4
     * @param back bytes per value of a sum
     * @param row bytes per value of the token's own row, 0 if the row stays where it is
     */
    private record Network(
            String name, double bytesPerSecond, double perMessage, double perExchange, int there, int back, int row) {}

    /**
     * The time of all kernels of the layer on one H100, from bench/results (2026-11-23), with the measured numbers of
     * tokens.
     */
    private static final List<Model> MODELS = List.of(
            new Model("Qwen3-30B-A3B", 128, 8, 2048, 256, 494),
            new Model("Qwen3-30B-A3B", 128, 8, 2048, 4096, 2630),
            new Model("Mixtral-8x7B", 8, 2, 4096, 256, 886),
            new Model("Mixtral-8x7B", 8, 2, 4096, 4096, 8079));

    /**
     * Nominal, not measured: line rate less a tenth; 400 Gb/s per GPU for RDMA; 100 Gb/s per machine of 8 GPUs for TCP,
     * which Spark's shuffle uses too; a message's time on the sender's side.
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
        // Counts the owners of a token's experts: all except those that none of its K distinct experts belong to.
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
