package org.tornadomoe.reference;

/**
 * int8 activations with a scale a row.
 *
 * @param values [rows, width]
 * @param scales [rows]
 */
public record QuantizedTokens(byte[] values, float[] scales) {}
