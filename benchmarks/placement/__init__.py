"""Do bnpass's own sites train as well as the published placement of Batch Normalization?"""
