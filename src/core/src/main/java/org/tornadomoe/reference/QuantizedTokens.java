package org.tornadomoe.reference;

/**
 * int8 activations with one scale per row, or one per group of columns of a row.
 *
 * @param values [rows, width]
 * @param scales [rows], or [rows, groups]; one scale for all is repeated
 */
public record QuantizedTokens(byte[] values, float[] scales) {}
